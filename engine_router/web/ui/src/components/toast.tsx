// Short messages at the edge of the page, which a screen reader reads aloud.
import { signal } from "@preact/signals";

export interface Message {
  id: number;
  kind: "info" | "error";
  text: string;
}

const SHOWN_MS = 6000;
const MOST = 4;

export const messages = signal<readonly Message[]>([]);
let last = 0;

/** Shows a message for a while; one of an error stays until it is closed. */
export function toast(text: string, kind: Message["kind"] = "info"): void {
  const id = ++last;
  messages.value = [...messages.value.slice(1 - MOST), { id, kind, text }];
  if (kind === "info") setTimeout(() => close(id), SHOWN_MS);
}

function close(id: number): void {
  messages.value = messages.value.filter((message) => message.id !== id);
}

/** Does something that may fail, and tells how it went. Returns whether it went well. */
export async function attempt(work: () => Promise<unknown>, done?: string): Promise<boolean> {
  try {
    await work();
    if (done) toast(done);
    return true;
  } catch (error) {
    toast(error instanceof Error ? error.message : String(error), "error");
    return false;
  }
}

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite">
      {messages.value.map(({ id, kind, text }) => (
        <div key={id} class={`toast ${kind}`}>
          <span>{text}</span>
          <button type="button" class="quiet" aria-label="Close this message" onClick={() => close(id)}>
            ×
          </button>
        </div>
      ))}
    </div>
  );
}
