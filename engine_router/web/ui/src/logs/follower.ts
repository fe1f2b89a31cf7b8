// A log that is followed: read as it comes, kept in bounds, told of a few times a second however fast it grows.
import { ApiError, send } from "../api";

export interface Line {
  number: number;
  text: string;
}

/** Lines that are kept. */
export const MOST_LINES = 10_000;
const TELL_MS = 200;
const RETRY_MS = 3000;
/** Characters of a line that is still growing, beyond which it is taken for a whole one. */
const LONGEST_LINE = 1_000_000;

export class Follower {
  lines: Line[] = [];
  /** Why nothing comes; empty while something may. */
  problem = "";
  private next = 0;
  private rest = "";
  private timer: ReturnType<typeof setTimeout> | undefined;
  private readonly gone = new AbortController();
  /** Ends what is read now. */
  private reading = new AbortController();

  /** Follows the log at `path`; calls `changed` when there is something to see. */
  constructor(
    private readonly path: string,
    private readonly changed: () => void,
  ) {
    document.addEventListener("visibilitychange", this.look);
    void this.run();
  }

  close(): void {
    document.removeEventListener("visibilitychange", this.look);
    this.gone.abort();
    this.reading.abort();
    clearTimeout(this.timer);
  }

  /** A tab that nobody sees reads nothing: the browser's few connections to the router are for those that are seen. */
  private readonly look = (): void => {
    if (document.hidden) this.reading.abort();
    else this.seen();
  };
  private seen: () => void = () => {};

  /** Takes in text as it came. */
  take(text: string): void {
    const parts = (this.rest + text).split("\n");
    this.rest = parts.pop() ?? "";
    if (this.rest.length > LONGEST_LINE) {
      parts.push(this.rest);
      this.rest = "";
    }
    for (const part of parts.slice(-MOST_LINES)) this.lines.push({ number: this.next++, text: part.replace(/\r$/, "") });
    // A new array each time, so that whoever shows it sees that it is another one.
    this.lines = this.lines.slice(-MOST_LINES);
    this.tell();
  }

  private tell(): void {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.changed();
    }, TELL_MS);
  }

  private async run(): Promise<void> {
    while (!this.gone.signal.aborted) {
      if (document.hidden) await new Promise<void>((resolve) => (this.seen = resolve));
      if (this.gone.signal.aborted) return;
      this.reading = new AbortController();
      try {
        await this.read(this.reading.signal);
        this.problem = "The log has ended: the router went down, or its configuration changed.";
      } catch (error) {
        if (this.reading.signal.aborted) continue;
        this.problem = error instanceof Error ? error.message : String(error);
        this.tell();
        if (error instanceof ApiError && error.status >= 400 && error.status < 500) return;
      }
      this.tell();
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  private async read(signal: AbortSignal): Promise<void> {
    const response = await send(this.path, { signal });
    const reader = response.body?.getReader();
    if (reader === undefined) return;
    // What is told again after a break begins anew.
    [this.lines, this.rest, this.problem] = [[], "", ""];
    this.tell();
    const decoder = new TextDecoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this.take(decoder.decode(value, { stream: true }));
    }
  }
}
