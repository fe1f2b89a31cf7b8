// Which of the browser's tabs reads the router's stream: the one that was looked at last. It tells the others what comes.
//
// A browser opens six connections to a host for all its tabs together (HTTP/1.1): were there a stream for each, a seventh
// tab would hang. Nothing is locked, since locks are for pages that came by TLS: whoever takes the stream says so, and
// whoever had it closes its own.

/** What the tabs tell each other. `from` is the tab that says it. */
export type Word =
  /** I read the stream from now on. */
  | { kind: "mine"; from: string; at: number }
  /** I have just been opened: what is known? */
  | { kind: "hello"; from: string }
  /** I read it no more, and am going. */
  | { kind: "gone"; from: string }
  /** I still read it. */
  | { kind: "beat"; from: string }
  | { kind: "news"; from: string; news: unknown };

export interface Tab {
  /** Opens the stream. */
  open: () => void;
  /** Closes it. */
  close: () => void;
  /** Takes in what the tab that reads the stream tells. */
  take: (news: unknown) => void;
  /** All that is known, for a tab that was just opened; null where that is nothing. */
  known: () => unknown;
}

const BEAT_MS = 5000;
/** Silence after which a tab that is seen takes the stream: the one that had it may have crashed, or be frozen. */
const SILENCE_MS = 15_000;
/** As long waits one that is not seen: browsers let the timers of a hidden tab run once a minute. */
const HIDDEN_SILENCE_MS = 180_000;
const ANSWER_MS = 400;

export class Tabs {
  /** This tab reads the stream. */
  isReader = false;
  private readonly me = `${Math.random()}`;
  private channel: BroadcastChannel | null = null;
  private isIn = false;
  private tookAt = 0;
  private reader = "";
  private heardAt = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private beat: ReturnType<typeof setInterval> | undefined;

  constructor(
    private readonly name: string,
    private readonly tab: Tab,
  ) {
    document.addEventListener("visibilitychange", () => this.isIn && this.look());
    addEventListener("pagehide", () => this.isIn && this.step("gone"));
    addEventListener("pageshow", ({ persisted }) => persisted && this.isIn && this.look());
  }

  /** Begins to read, or to be told. */
  join(): void {
    if (this.isIn) return;
    this.isIn = true;
    if (typeof BroadcastChannel !== "undefined") {
      this.channel = new BroadcastChannel(this.name);
      this.channel.addEventListener("message", ({ data }: MessageEvent<Word>) => this.hear(data));
    }
    this.heardAt = Date.now();
    this.beat = setInterval(() => this.check(), BEAT_MS);
    if (!document.hidden || this.channel === null) this.claim();
    else {
      this.claimUnlessHeard(ANSWER_MS);
      this.say({ kind: "hello", from: this.me });
    }
  }

  /** Ends both. */
  leave(): void {
    if (!this.isIn) return;
    this.isIn = false;
    clearTimeout(this.timer);
    clearInterval(this.beat);
    this.step("gone");
    this.channel?.close();
    this.channel = null;
  }

  /** Tells the other tabs what came. */
  tell(news: unknown): void {
    if (this.isReader) this.say({ kind: "news", from: this.me, news });
  }

  private say(word: Word): void {
    this.channel?.postMessage(word);
  }

  private hear(word: Word): void {
    if (!this.isIn) return;
    if (word.kind === "hello") {
      if (this.isReader) this.tell(this.tab.known());
      return;
    }
    if (word.kind === "gone") {
      if (word.from === this.reader) this.claimUnlessHeard(document.hidden ? ANSWER_MS : 0);
      return;
    }
    if (this.isReader) {
      // Two took it: the later one has it. One that did not hear so, since it was frozen, is told again.
      const isLater = word.kind === "mine" && (word.at > this.tookAt || (word.at === this.tookAt && word.from > this.me));
      if (!isLater) return this.say({ kind: "mine", from: this.me, at: this.tookAt });
      this.step("mine");
    }
    // What comes late from one that has the stream no more would be older than what is known.
    if (word.kind === "mine" || this.reader === "") this.reader = word.from;
    if (word.from !== this.reader) return;
    clearTimeout(this.timer);
    this.heardAt = Date.now();
    // It goes on behind what it knows; what was before that has to be told.
    if (word.kind === "mine" && this.tab.known() === null) this.say({ kind: "hello", from: this.me });
    if (word.kind === "news" && word.news !== null) this.tab.take(word.news);
  }

  /** Takes the stream when the tab is seen. */
  private look(): void {
    if (!document.hidden) this.claim();
    else if (this.channel === null) this.step("mine"); // a browser without a way to tell the others
  }

  private claim(): void {
    clearTimeout(this.timer);
    if (this.isReader) return;
    [this.isReader, this.reader, this.tookAt] = [true, this.me, Date.now()];
    this.tab.open();
    this.say({ kind: "mine", from: this.me, at: this.tookAt });
  }

  /** Takes the stream after a moment, unless somebody else has it by then. */
  private claimUnlessHeard(pauseMs: number): void {
    this.reader = "";
    clearTimeout(this.timer);
    // Not all at once, though the timers of hidden tabs are.
    this.timer = setTimeout(() => this.claim(), pauseMs * (1 + 3 * Math.random()));
  }

  /** Stops reading: it is somebody else's now, or nobody's. */
  private step(why: "mine" | "gone"): void {
    if (!this.isReader) return;
    this.isReader = false;
    this.tab.close();
    if (why === "gone") this.say({ kind: "gone", from: this.me });
  }

  private check(): void {
    if (this.isReader) this.say({ kind: "beat", from: this.me });
    else if (Date.now() - this.heardAt > (document.hidden ? HIDDEN_SILENCE_MS : SILENCE_MS)) this.claim();
  }
}
