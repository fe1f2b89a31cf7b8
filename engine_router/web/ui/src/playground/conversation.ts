// A conversation in the playground: what was said, what is sent, and what the browser keeps of it.

export interface Message {
  role: "user" | "assistant";
  text: string;
  thinking?: string;
  /** Pictures, as data URLs. */
  images?: string[];
  /** How fast it came: `41.2 tokens/s`. */
  speed?: string;
  error?: string;
}

export interface Settings {
  system: string;
  temperature: string;
  top_p: string;
  max_tokens: string;
  seed: string;
}

export const NO_SETTINGS: Settings = { system: "", temperature: "", top_p: "", max_tokens: "", seed: "" };
export const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"] as const;

/** Returns the body of the request for the next answer. Settings that are empty are the engine's own. */
export function bodyOf(model: string, messages: readonly Message[], settings: Settings): Record<string, unknown> {
  const body: Record<string, unknown> = {
    model,
    stream: true,
    stream_options: { include_usage: true },
    messages: [
      ...(settings.system ? [{ role: "system", content: settings.system }] : []),
      ...messages.filter(({ text, images }) => text || images?.length).map(({ role, text, images }) => ({ role, content: contentOf(text, images) })),
    ],
  };
  for (const name of NUMBERS) {
    const value = Number(settings[name]);
    if (settings[name].trim() !== "" && Number.isFinite(value)) body[name] = value;
  }
  return body;
}

function contentOf(text: string, images: readonly string[] | undefined): unknown {
  if (!images?.length) return text;
  const parts: unknown[] = images.map((url) => ({ type: "image_url", image_url: { url } }));
  if (text) parts.push({ type: "text", text });
  return parts;
}

const MOST_CHARS = 1_000_000;

/** Reads what the browser has kept under a name; `otherwise` where there is nothing, or nothing that can be read. */
export function kept<T>(name: string, otherwise: T): T {
  try {
    const text = localStorage.getItem(`engine-router.${name}`);
    return text === null ? otherwise : (JSON.parse(text) as T);
  } catch {
    return otherwise;
  }
}

/** Keeps a value in the browser, as far as there is room; pictures are too large for that. */
export function keep(name: string, value: unknown): void {
  const text = JSON.stringify(value, (key, each: unknown) => (key === "images" ? undefined : each));
  try {
    if (text.length <= MOST_CHARS) localStorage.setItem(`engine-router.${name}`, text);
  } catch {
    // full, or not allowed: it is gone with the page
  }
}
