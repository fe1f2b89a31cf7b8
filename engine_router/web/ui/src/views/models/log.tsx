// What the engine of a model writes, as it is written.
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, query, send } from "../../api";

const MOST_LINES = 2000;
const MOST_CHARS = 2000;
// Colours and moves of a terminal.
const ANSI = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])/g;

export function ModelLog({ id }: { id: string }) {
  const [lines, setLines] = useState<readonly string[] | null>(null);
  const [error, setError] = useState("");
  const end = useRef<HTMLPreElement>(null);
  useEffect(() => {
    const leaving = new AbortController();
    readLines(`/admin/logs${query({ model: id, lines: 500, follow: 1 })}`, leaving.signal, (more) =>
      setLines((before) => [...(before ?? []), ...more].slice(-MOST_LINES)),
    ).catch((failure: unknown) => failure instanceof ApiError && setError(failure.message));
    return () => leaving.abort();
  }, [id]);
  useEffect(() => {
    const element = end.current;
    if (element) element.scrollTop = element.scrollHeight;
  }, [lines]);
  if (error) return <p class="bad">{error}</p>;
  return (
    <pre ref={end} class="log" tabIndex={0} aria-label={`Log of ${id}`}>
      {lines?.join("\n")}
    </pre>
  );
}

/** Reads the lines of a stream. What comes within a moment is handed over together. */
export async function readLines(path: string, signal: AbortSignal, take: (lines: string[]) => void): Promise<void> {
  const response = await send(path, { signal });
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let kept: string[] = [];
  let timer: ReturnType<typeof setTimeout> | undefined;
  const flush = (): void => {
    timer = undefined;
    take(kept);
    kept = [];
  };
  take([]);
  for (;;) {
    const read = await reader?.read().catch(() => undefined);
    if (!read || read.done) break;
    const lines = (rest + read.value).split("\n");
    rest = (lines.pop() ?? "").slice(0, MOST_CHARS);
    for (const line of lines) kept.push(plain(line));
    kept = kept.slice(-MOST_LINES);
    timer ??= setTimeout(flush, 100);
  }
  if (signal.aborted) clearTimeout(timer);
}

/** Returns a line without the colours of a terminal, shortened where it is long. */
export function plain(line: string): string {
  const text = line.replace(ANSI, "").replace(/\r$/, "");
  return text.length > MOST_CHARS ? `${text.slice(0, MOST_CHARS)} … (${text.length} characters)` : text;
}
