import { render } from "preact";
import { act } from "preact/test-utils";
import { afterEach, describe, expect, it } from "vitest";
import { asMarkdown } from "../src/activity/markdown";
import { Bars, Speeds } from "../src/activity/speed";
import type { Past } from "../src/activity/types";
import { duration } from "../src/components/format";
import { answering, router, show, text } from "./helpers";

afterEach(() => render(null, document.body));

const bins = [
  { from: 0.1, to: 0.15, count: 2 },
  { from: 0.15, to: 0.2, count: 0 },
  { from: 0.2, to: null, count: 8 },
];

describe("a histogram", () => {
  it("has a bar for each bin, and says in words what it shows", async () => {
    await show(<Bars title="First token" histogram={{ count: 10, p50: 0.21, p95: 4, bins }} format={duration} />);
    expect([...document.querySelectorAll<HTMLElement>(".bin span")].map((each) => each.style.height)).toEqual(["25%", "0%", "100%"]);
    expect([...document.querySelectorAll(".bin")].map((each) => each.getAttribute("aria-label"))).toEqual(["0.10 s to 0.15 s: 2", "0.15 s to 0.20 s: 0", "0.20 s and more: 8"]);
    expect(document.querySelector("figure")?.getAttribute("aria-label")).toBe("First token of 10 requests: half below 0.21 s, 95 % below 4.0 s");
  });

  it("is asked for what the filters choose, and left out where nothing is known", async () => {
    const none = { count: 0, p50: null, p95: null, bins: [] };
    const sent = answering(() => ({ first_token_s: none, tokens_per_s: none }));
    await show(<Speeds filters={{ model: "a b", status: "" }} />, router());
    await act(() => new Promise((resolve) => setTimeout(resolve, 20)));
    expect(sent[0]?.[0]).toBe("/admin/activity/histogram?model=a+b");
    expect(text()).toBe("");
  });
});

describe("past requests as Markdown", () => {
  it("are a table in which names make nothing of their own", () => {
    const row = { at: 0, model: "a|b\n<b>", endpoint: "/v1/x", status: 200, tokens_in: 5, tokens_cached: null, tokens_out: 7, first_token_s: 0.12345, tokens_per_s: 41.26, queue_wait_s: 0, load_wait_s: null, duration_s: 1 };
    const lines = asMarkdown([row as unknown as Past]).trimEnd().split("\n");
    expect(lines).toHaveLength(3);
    expect(lines[0]).toContain("| at | model |");
    expect(lines[2]).toBe("| 1970-01-01T00:00:00.000Z | a\\|b\ufffd\\<b\\> | /v1/x | 200 | 5 |  | 7 | 0.123 | 41.26 | 0 |  | 1 |");
  });
});
