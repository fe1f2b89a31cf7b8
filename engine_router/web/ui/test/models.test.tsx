import { render } from "preact";
import { act } from "preact/test-utils";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { bytes, count } from "../src/components/format";
import { clientsFor } from "../src/views/models/clients";
import { filtered } from "../src/views/models/list";
import { kept } from "../src/views/models/page";
import { shown } from "../src/views/models/settings";
import Models from "../src/views/models";
import type { Peer } from "../src/types";
import { answering, router, show, text } from "./helpers";

const ANY = { state: "", engine: "", can: "" };

async function at(hash: string): Promise<void> {
  await act(() => {
    location.hash = hash;
    dispatchEvent(new Event("hashchange"));
  });
}

beforeEach(() => at("#/models"));
afterEach(() => render(null, document.body));

describe("the list of models", () => {
  const rows = [
    { id: "qwen3-30b", engine: "a", state: "ready", aliases: ["best"], capabilities: ["completion", "vision"] },
    { id: "gemma-3", engine: "b", state: "off" },
  ];

  it.each([
    ["", ANY, 2],
    ["QWEN 30b", ANY, 1],
    ["best", ANY, 1],
    ["qwen gemma", ANY, 0],
    ["", { ...ANY, state: "off" }, 1],
    ["", { ...ANY, engine: "b", can: "vision" }, 0],
    ["", { ...ANY, can: "vision" }, 1],
  ])("finds by %j and %j", (search, wanted, found) => expect(filtered(rows, search, wanted)).toHaveLength(found));

  it("keeps the search in the address", async () => {
    await show(<Models />, router());
    expect(document.querySelectorAll("tbody tr")).toHaveLength(2);
    const search = document.querySelector<HTMLInputElement>("input[type=search]");
    await act(() => {
      if (search) search.value = "alp";
      search?.dispatchEvent(new Event("input", { bubbles: true }));
    });
    expect(location.hash).toBe("#/models?q=alp");
    expect(document.querySelectorAll("tbody tr")).toHaveLength(1);
  });
});

describe("the peers", () => {
  const rows = () => [...document.querySelectorAll('section[aria-label="Peers"] tbody tr')].map((row) => [...row.children].map((cell) => cell.textContent?.trim()));
  const engine = (peer: Peer) => ({ type: "peer", pool: "remotes", state: "ready", peer });

  it("are shown with their queue, what is ready there, and what they do or lack", async () => {
    const attic = engine({
      program: "engine-router",
      version: "0.2.0",
      in_flight: 2,
      waiting: 3,
      ready: ["alpha", "beta"],
      swaps: [{ words: "start gamma", elapsed_s: 4, expected_s: 30 }],
    });
    const barn = engine({ program: "ollama", fault: "did not answer within 3 s" });
    await show(<Models />, router({ engines: { attic, barn, cellar: engine({}) } }));
    expect(rows()).toEqual([
      ["attic", "engine-router 0.2.0", "alpha, beta", "2", "3", "start gamma (about 30 s)"],
      ["barn", "ollama", "", expect.anything(), expect.anything(), "did not answer within 3 s"],
      ["cellar", "", "", expect.anything(), expect.anything(), "not asked yet"],
    ]);
  });

  it("are not spoken of where there are none", async () => {
    await show(<Models />, router());
    expect(document.querySelector('section[aria-label="Peers"]')).toBeNull();
  });
});

describe("the routes", () => {
  const rows = () => [...document.querySelectorAll('section[aria-label="Routes"] tbody tr')].map((row) => [...row.children].map((cell) => cell.textContent?.trim()));
  const auto = { strategy: "soonest", models: ["beta", "alpha"], leads_to: "alpha" };

  it("stand there with their models and what they would choose now, which changes", async () => {
    const nobody = { strategy: "first", models: ["gone"] };
    await show(<Models />, router({ routes: { auto, nobody } }));
    expect(rows()).toEqual([
      ["auto", "alpha ready", "soonest", "beta, alpha"],
      ["nobody", "none of them", "first", "gone"],
    ]);
    expect(document.querySelector('section[aria-label="Routes"] a')?.getAttribute("href")).toBe("#/models/alpha");
    await show(<Models />, router({ routes: { auto: { ...auto, leads_to: "beta" } } }));
    expect(rows()).toEqual([["auto", "beta off", "soonest", "beta, alpha"]]);
  });

  it("are not spoken of where there are none", async () => {
    await show(<Models />, router({ routes: {} }));
    expect(document.querySelector('section[aria-label="Routes"]')).toBeNull();
  });
});

describe("the page of a model", () => {
  it("shows its settings with their origin", async () => {
    answering(() => ({ id: "alpha", engine: "a", settings: [{ name: "hold_s", value: 3, from: "engines.toml" }, { name: "group", value: null, from: "default" }], last_error: "<b>no</b>" }));
    await at("#/models/alpha");
    await show(<Models />, router());
    await act(() => new Promise((resolve) => setTimeout(resolve, 20)));
    expect(text("h1")).toBe("alpha");
    expect(text("tbody")).toBe("hold_s3engines.toml");
    expect(text(".facts + h2 + pre")).toBe("<b>no</b>");
  });

  it.each(["gone", "__proto__", "toString"])("says that there is no %s", async (id) => {
    await at(`#/models/${id}`);
    await show(<Models />, router());
    expect(text()).toContain("No model is called so");
  });

  it("tells what is kept of conversations", () => {
    const some = { keeps: true, conversations: 2, size_bytes: 3e9, restores: { restored: 4, new: 1 }, reused_tokens: { slot: 1000, disk: 500 } };
    expect(kept(some)).toBe(`2 saved, ${bytes(3e9)}; 4 restored; read again: 1 new; ${count(1500)} tokens reused`);
    expect(kept({ ...some, conversations: 0, size_bytes: 0, restores: {}, reused_tokens: {} })).toBe("0 saved; 0 restored");
    expect(kept({ ...some, keeps: false })).toContain("nothing");
  });

  it("writes values as in the configuration", () => {
    expect(shown(["a", 1, { b: true }])).toBe('["a", 1, { b = true }]');
  });
});

describe("text to copy", () => {
  const hostile = `it's "x" $(boom) \`y\``;

  it("is quoted for a shell and for Python, whatever a model is called", () => {
    const texts = Object.fromEntries(clientsFor("http://h:1/router", hostile, {}, false).map(({ title, text: each }) => [title, each]));
    expect(texts["curl"]).toContain("it'\\''s \\\"x\\\" $(boom) `y`");
    expect(texts["Python"]).toContain('model="it\'s \\"x\\" $(boom) `y`"');
    expect(texts["Claude Code"]).toContain("export ANTHROPIC_BASE_URL=http://h:1/router\n");
    expect(texts["Codex"]).toContain(`-m 'it'\\''s "x" $(boom) \`y\`'`);
  });

  it("asks for the key where one is needed", () => {
    expect(clientsFor("http://h", "m", {}, true)[0]?.text).toContain("Bearer YOUR_KEY");
    expect(clientsFor("http://h", "m", {}, false)[0]?.text).not.toContain("Bearer");
  });

  it("embeds with what can only embed", () => {
    const [curl, ...others] = clientsFor("http://h", "m", { capabilities: ["embedding"] }, false);
    expect(curl?.text).toContain("/v1/embeddings");
    expect(others).toHaveLength(1);
  });
});
