import { describe, expect, it } from "vitest";
import { LONGEST, pieces, plain } from "../src/logs/ansi";
import { Follower, MOST_LINES } from "../src/logs/follower";
import { matching, wantedOf } from "../src/views/logs";

const ESC = "\u001b";

describe("a line of a log", () => {
  it("has its colours as classes", () => {
    expect(pieces(`a${ESC}[1;31mred${ESC}[0m b`)).toEqual([
      { text: "a", look: "" },
      { text: "red", look: "a-bold a-red" },
      { text: " b", look: "" },
    ]);
    expect(pieces(`${ESC}[31m${ESC}[92mgreen${ESC}[39mplain`).map(({ look }) => look)).toEqual(["a-green", ""]);
    expect(pieces(`${ESC}[38;5;196mx${ESC}[38;2;1;2;3my`).map(({ text, look }) => text + look)).toEqual(["x", "y"]);
  });

  it("does nothing else, whatever is in it", () => {
    expect(plain(`${ESC}[2J${ESC}]0;title\u0007${ESC}]8;;http://x${ESC}\\link${ESC}c\u0008\u009b<script>`)).toBe("link<script>");
    expect(pieces(`${ESC}[999;1mx`)).toEqual([{ text: "x", look: "a-bold" }]);
    expect(pieces(ESC)).toEqual([]);
  });

  it("is cut where nobody would read on", () => {
    const shown = pieces("x".repeat(1_000_000));
    expect(shown[0]?.text).toHaveLength(LONGEST);
    expect(shown[1]?.text).toContain("more characters");
  });
});

describe("a log that is followed", () => {
  const follower = (): Follower => {
    const made = new Follower("/nowhere", () => {});
    made.close();
    return made;
  };

  it("puts lines together from what comes, and keeps the last of them", () => {
    const log = follower();
    log.take("one\ntw");
    log.take("o\r\nthr");
    expect(log.lines.map(({ text }) => text)).toEqual(["one", "two"]);
    log.take("x\n".repeat(3 * MOST_LINES));
    expect(log.lines).toHaveLength(MOST_LINES);
    expect(new Set(log.lines.map(({ number }) => number)).size).toBe(MOST_LINES);
  });

  it("does not wait for the end of a line for ever", () => {
    const log = follower();
    log.take("x".repeat(1_000_001));
    expect(log.lines).toHaveLength(1);
  });

  it("is searched by what can be seen", () => {
    const log = follower();
    log.take(`${ESC}[31mER${ESC}[0mROR\nfine\n`);
    const found = (filter: string, isRegex: boolean): number[] | string => {
      const wanted = wantedOf(filter, isRegex);
      return typeof wanted === "string" ? wanted : matching(log.lines, wanted).map(({ number }) => number);
    };
    expect(found("error", false)).toEqual([0]);
    expect(found("", true)).toEqual([0, 1]);
    expect(found("^(er|wa)+ror$", true)).toEqual([0]);
    expect(found("f.n", true)).toEqual([1]);
    expect(found("f.n", false)).toEqual([]);
    expect(found("(", true)).toMatch(/regular expression/i);
  });
});
