// The answer of a chat as it comes: OpenAI's stream of events, as pieces of text, thoughts and figures.

export interface Piece {
  text?: string;
  thinking?: string;
  /** Tokens of the answer, where the engine tells them. */
  tokens?: number;
  /** Tokens per second, where the engine tells them. */
  rate?: number;
  finish?: string;
  error?: string;
}

interface Chunk {
  choices?: { delta?: { content?: unknown; reasoning_content?: unknown; reasoning?: unknown }; finish_reason?: string | null }[];
  usage?: { completion_tokens?: number } | null;
  timings?: { predicted_per_second?: number; predicted_n?: number } | null;
  error?: { message?: string } | string;
}

/** Yields the data of each event of a stream; comments, which keep it alive, are left out. */
export async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/** Returns what one event says. */
export function pieceOf(data: string): Piece {
  let chunk: Chunk;
  try {
    chunk = JSON.parse(data) as Chunk;
  } catch {
    return {};
  }
  const piece: Piece = {};
  const choice = chunk.choices?.[0];
  const { content, reasoning_content, reasoning } = choice?.delta ?? {};
  if (typeof content === "string") piece.text = content;
  const thoughts = reasoning_content ?? reasoning;
  if (typeof thoughts === "string") piece.thinking = thoughts;
  if (choice?.finish_reason) piece.finish = choice.finish_reason;
  const tokens = chunk.usage?.completion_tokens ?? chunk.timings?.predicted_n;
  if (tokens != null) piece.tokens = tokens;
  if (chunk.timings?.predicted_per_second != null) piece.rate = chunk.timings.predicted_per_second;
  if (chunk.error) piece.error = typeof chunk.error === "string" ? chunk.error : (chunk.error.message ?? "the engine failed");
  return piece;
}

/** Splits thoughts that a model wrote between `<think>` and `</think>` from its answer. */
export function withoutThoughts(text: string): { text: string; thinking: string } {
  const match = /^\s*<think(?:ing)?>([\s\S]*?)(?:<\/think(?:ing)?>|$)/.exec(text);
  if (match === null) return { text, thinking: "" };
  return { text: text.slice(match[0].length).trimStart(), thinking: (match[1] ?? "").trim() };
}
