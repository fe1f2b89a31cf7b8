import { render } from "preact";
import { afterEach, describe, expect, it } from "vitest";
import { bodyOf, keep, kept, NO_SETTINGS } from "../src/playground/conversation";
import { similarities } from "../src/playground/forms";
import { Markdown } from "../src/playground/markdown";
import { events, pieceOf, withoutThoughts } from "../src/playground/stream";
import { waitingWords } from "../src/playground/waiting";
import type { RouterState } from "../src/types";

afterEach(() => render(null, document.body));

const streamed = (...parts: string[]): ReadableStream<Uint8Array> =>
  new ReadableStream({
    start(controller) {
      for (const part of parts) controller.enqueue(new TextEncoder().encode(part));
      controller.close();
    },
  });

describe("a streamed answer", () => {
  it("is put together wherever it was cut", async () => {
    const found: string[] = [];
    for await (const data of events(streamed(": alive\n\ndata: {\"a", '":"é"}\n\ndata: [DONE]\n', "\n"))) found.push(data);
    expect(found).toEqual(['{"a":"é"}', "[DONE]"]);
  });

  it("tells text, thoughts, figures and errors", () => {
    const piece = (value: unknown) => pieceOf(JSON.stringify(value));
    expect(piece({ choices: [{ delta: { content: "Hi" } }] })).toEqual({ text: "Hi" });
    expect(piece({ choices: [{ delta: { reasoning_content: "Hm" } }] })).toEqual({ thinking: "Hm" });
    expect(piece({ choices: [{ delta: {}, finish_reason: "length" }] })).toEqual({ finish: "length" });
    expect(piece({ choices: [], usage: { completion_tokens: 7 } })).toEqual({ tokens: 7 });
    expect(piece({ timings: { predicted_per_second: 41.5, predicted_n: 7 } })).toEqual({ tokens: 7, rate: 41.5 });
    expect(piece({ error: { message: "no room" } })).toEqual({ error: "no room" });
    expect(pieceOf("[DONE]")).toEqual({});
  });

  it("has its thoughts apart, while they come too", () => {
    expect(withoutThoughts("<think>one</think>\n\ntwo")).toEqual({ text: "two", thinking: "one" });
    expect(withoutThoughts("<think>still")).toEqual({ text: "", thinking: "still" });
    expect(withoutThoughts("a <think>")).toEqual({ text: "a <think>", thinking: "" });
  });
});

describe("a conversation", () => {
  it("is sent with what was set only, and pictures before words", () => {
    const said = [{ role: "user" as const, text: "What?", images: ["data:x"] }, { role: "assistant" as const, text: "" }];
    const body = bodyOf("m", said, { ...NO_SETTINGS, system: "Be brief.", temperature: "0", seed: "x" });
    expect(body).toMatchObject({ model: "m", temperature: 0 });
    expect(body).not.toHaveProperty("seed");
    expect(body.messages).toEqual([
      { role: "system", content: "Be brief." },
      { role: "user", content: [{ type: "image_url", image_url: { url: "data:x" } }, { type: "text", text: "What?" }] },
    ]);
  });

  it("is kept without pictures, and what cannot be read is forgotten", () => {
    keep("test", [{ text: "a", images: ["data:x"] }]);
    expect(kept("test", [])).toEqual([{ text: "a" }]);
    localStorage.setItem("engine-router.test", "{");
    expect(kept("test", 5)).toBe(5);
  });
});

describe("markdown", () => {
  const html = (text: string): string => {
    render(<Markdown text={text} />, document.body);
    return document.body.innerHTML;
  };

  it("has code, lists, headings and bold", () => {
    expect(html("# Title\n\n- one\n- **two** `x`\n\n1. a\n2. b")).toBe(
      "<div><p><strong>Title</strong></p><ul><li>one</li><li><strong>two</strong> <code>x</code></li></ul><ol><li>a</li><li>b</li></ol></div>",
    );
    expect(html("see\n```py\nprint(1)\n# no heading\n```\nso")).toContain("print(1)\n# no heading");
    expect(html("```\nstill open")).toContain("<pre");
  });

  it("never makes elements of what a model says", () => {
    expect(html('<img src=x onerror=alert(1)> [a](javascript:alert(1)) `<b>`')).not.toMatch(/<img|<b>|href/);
  });
});

describe("what an answer waits for", () => {
  const router = (pool: object): RouterState =>
    ({ models: { b: { engine: "b", state: "off", resident: "b" } }, engines: { b: { pool: "p" } }, pools: { p: { swaps: [], queue: [], ...pool } } }) as never;

  it("is said in words", () => {
    const swap = { source: "a", target: "b", phase: "start", phase_began_at: 97, phases: [{ name: "start", usual_s: 12 }] };
    expect(waitingWords(router({ swaps: [swap] }), "b", 100)).toBe("loading b: start for 3 s, usually 12 s");
    const queued = { place: 2, model: "b", resident: "b", expected_at: 130, reason: "a runs" };
    expect(waitingWords(router({ queue: [queued] }), "b", 100)).toBe("in the queue, place 2, about 30 s more: a runs");
    expect(waitingWords(router({}), "b", 100)).toBe("the model reads the prompt");
    expect(waitingWords(null, "b", 100)).toBe("waiting for the router");
  });
});

it("texts are compared by their vectors", () => {
  expect(similarities(["a", "b"], [[1, 0], [0, 2]])).toEqual([["a", "2 numbers"], ["b", "0.0000 like the first"]]);
});
