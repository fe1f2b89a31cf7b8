import { describe, expect, it } from "vitest";
import { asChat, pretty } from "../src/activity/chat";

const CHAT = JSON.stringify({
  messages: [
    { role: "system", content: "Be brief." },
    { role: "user", content: [{ type: "text", text: "What is it?" }, { type: "image_url", image_url: { url: "data:" } }] },
  ],
});
const events = (...values: unknown[]): string => [...values.map((value) => `data: ${JSON.stringify(value)}`), "data: [DONE]"].join("\n\n");

describe("a captured chat", () => {
  it("is read from OpenAI's stream, with its thoughts and calls", () => {
    const answer = events(
      { choices: [{ delta: { role: "assistant", content: "" } }] },
      { choices: [{ delta: { reasoning_content: "Hm. " } }] },
      { choices: [{ delta: { content: "A " } }] },
      { choices: [{ delta: { content: "cat." } }] },
      { choices: [{ delta: { tool_calls: [{ function: { name: "look", arguments: '{"a":1}' } }] } }] },
    );
    expect(asChat(CHAT, answer)).toEqual([
      { role: "system", text: "Be brief.", thinking: "" },
      { role: "user", text: "What is it?[image_url]", thinking: "" },
      { role: "assistant", text: 'A cat.\n→ look {"a":1}', thinking: "Hm. " },
    ]);
  });

  it("is read from Anthropic's, Ollama's and the responses' streams, and from whole answers", () => {
    const last = (request: unknown, answer: string) => asChat(JSON.stringify(request), answer).at(-1)?.text;
    const anthropic = { system: "s", messages: [{ role: "user", content: "hi" }] };
    expect(last(anthropic, events({ type: "content_block_delta", delta: { type: "text_delta", text: "Hello" } }))).toBe("Hello");
    expect(last(anthropic, JSON.stringify({ type: "message", content: [{ type: "text", text: "Hello" }] }))).toBe("Hello");
    const ollama = { messages: [{ role: "user", content: "hi" }] };
    expect(last(ollama, '{"message":{"content":"He"}}\n{"message":{"content":"llo"},"done":true}\n')).toBe("Hello");
    expect(last({ prompt: "hi" }, '{"response":"Hel"}\n{"response":"lo","done":true}')).toBe("Hello");
    expect(last({ input: "hi" }, events({ type: "response.output_text.delta", delta: "Hello" }))).toBe("Hello");
    expect(last(ollama, JSON.stringify({ choices: [{ message: { content: "Hello" } }] }))).toBe("Hello");
  });

  it("is none where there is no conversation", () => {
    expect(asChat("not json", "")).toEqual([]);
    expect(asChat('{"input":["a","b"]}', "{}")).toEqual([]);
    expect(asChat("[1]", "{}")).toEqual([]);
  });
});

describe("a body in a pretty form", () => {
  it("has indents, event by event", () => {
    expect(pretty('{"a":1}')).toBe('{\n  "a": 1\n}');
    expect(pretty('data: {"a":1}\n\ndata: [DONE]')).toBe('data: {\n  "a": 1\n}\n\ndata: [DONE]');
    expect(pretty("<script>")).toBe("<script>");
  });
});
