import { afterEach, describe, expect, it, vi } from "vitest";
import { type Tab, Tabs } from "../src/state/tabs";

/** Stands in for the browser's: what one posts all others of its name hear, at once. */
class Channel extends EventTarget {
  static open = new Set<Channel>();
  constructor(readonly name: string) {
    super();
    Channel.open.add(this);
  }
  postMessage(data: unknown): void {
    for (const other of Channel.open) {
      if (other !== this && other.name === this.name) other.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }));
    }
  }
  close(): void {
    Channel.open.delete(this);
  }
}

class Spy implements Tab {
  isOpen = false;
  heard: unknown[] = [];
  state: unknown = null;
  open = (): void => void (this.isOpen = true);
  close = (): void => void (this.isOpen = false);
  take = (news: unknown): void => void (this.heard.push(news), (this.state = news));
  known = (): unknown => this.state;
}

const made: Tabs[] = [];
function tab(): [Tabs, Spy] {
  const spy = new Spy();
  made.push(new Tabs("router", spy));
  return [made.at(-1)!, spy];
}

const see = (isSeen: boolean): void => {
  Object.defineProperty(document, "hidden", { value: !isSeen, configurable: true });
};

describe("the tabs of a browser", () => {
  vi.stubGlobal("BroadcastChannel", Channel);
  vi.useFakeTimers();
  see(true);
  afterEach(() => {
    made.splice(0).forEach((each) => each.leave());
    see(true);
  });

  it("have one stream, which the last one that was looked at reads", () => {
    const [one, first] = tab();
    const [two, second] = tab();
    one.join();
    vi.advanceTimersByTime(1);
    two.join();
    expect([first.isOpen, second.isOpen]).toEqual([false, true]);
    two.tell("news");
    one.tell("of one that has nothing to tell");
    expect([first.heard, second.heard]).toEqual([["news"], []]);
    two.leave();
    vi.advanceTimersByTime(0);
    expect([first.isOpen, second.isOpen]).toEqual([true, false]);
  });

  it("tell one that is opened behind the others what is known", () => {
    const [one, first] = tab();
    one.join();
    first.state = "all";
    see(false);
    const [two, second] = tab();
    two.join();
    vi.advanceTimersByTime(60_000);
    expect([first.isOpen, second.isOpen, second.heard[0]]).toEqual([true, false, "all"]);
  });

  it("have one of those that nobody sees read it, where nobody else does", () => {
    see(false);
    const spies = [tab(), tab(), tab()].map(([tabs, spy]) => (tabs.join(), spy));
    expect(spies.filter((spy) => spy.isOpen)).toHaveLength(0);
    vi.advanceTimersByTime(2000);
    expect(spies.filter((spy) => spy.isOpen)).toHaveLength(1);
  });

  it("notice that the one which reads it has gone silent, and do not believe what it says afterwards", () => {
    const [one, first] = tab();
    const [two, second] = tab();
    one.join();
    vi.advanceTimersByTime(1);
    two.join();
    const quiet = vi.spyOn(Channel.prototype, "postMessage").mockImplementation(() => {});
    vi.advanceTimersByTime(30_000);
    expect([first.isOpen, second.isOpen]).toEqual([true, true]);
    quiet.mockRestore();
    two.tell("something old");
    expect(first.heard).toEqual([]);
    expect([first.isOpen, second.isOpen]).toEqual([true, false]);
  });
});
