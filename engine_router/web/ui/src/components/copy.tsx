// Text that can be copied.
import { toast } from "./toast";

/** Copies a text. Pages that came by plain HTTP from elsewhere have no clipboard; then a selection has to do. */
export async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied.");
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    toast(isDone ? "Copied." : "The browser does not let this page copy.", isDone ? "info" : "error");
  }
}

export function Snippet({ label, text }: { label: string; text: string }) {
  return (
    <div class="snippet">
      <pre tabIndex={0} aria-label={label}>
        {text}
      </pre>
      <button type="button" aria-label={`Copy: ${label}`} onClick={() => void copy(text)}>
        Copy
      </button>
    </div>
  );
}

/** Quotes a text for a shell. */
export function shell(text: string): string {
  return /^[\w./:@%+,=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
