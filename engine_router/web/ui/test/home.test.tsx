import { render } from "preact";
import { act } from "preact/test-utils";
import { afterEach, describe, expect, it } from "vitest";
import { Questions } from "../src/components/dialog";
import { loadCost, unloadCost } from "../src/state/actions";
import Home from "../src/views/home";
import { partsOf } from "../src/views/home/pool";
import { answering, button, GIB, NOW, pool, resident, router, show, text } from "./helpers";

afterEach(() => render(null, document.body));

describe("what an action costs", () => {
  const full = router({
    pools: { main: pool({ residents: [resident("a", { load_cost_s: 8, unload_cost_s: 5, in_flight: 2 })] }) },
  });

  it("names those that go, and the time of all", () => {
    expect(loadCost(full, "beta")).toBe("stops a, about 35 s");
  });

  it("says what is not known", () => {
    expect(loadCost(router({ models: { m: { engine: "a", state: "off" } } }), "m")).toBe("how long it takes is not known yet");
    expect(loadCost(full, "nobody")).toBe("");
  });

  it("does not promise whom a budget spares", () => {
    const memory = { total_bytes: 24 * GIB, free_bytes: 4 * GIB };
    const shared = router({ pools: { main: pool({ mode: "budget", memory, residents: [resident("a")] }) } });
    expect(loadCost(shared, "beta")).toBe("others may have to make way, about 30 s");
  });

  it("counts the requests that are waited for", () => {
    expect(unloadCost(full.pools["main"]?.residents ?? [])).toBe("stops a, after 2 requests have finished, loading again takes about 8 s");
  });
});

describe("the memory of a pool", () => {
  it("is divided as measured, else as expected", () => {
    const parts = partsOf(
      pool({
        memory: { total_bytes: 24 * GIB, free_bytes: 3 * GIB, foreign_bytes: GIB, asleep_bytes: 0 },
        residents: [resident("a", { footprint_bytes: 12 * GIB }), resident("b", { need_bytes: 8 * GIB }), resident("c")],
      }),
    );
    expect(parts.map((part) => [part.name, part.amount / GIB, part.text])).toEqual([
      ["a", 12, "12.0 GiB"],
      ["b", 8, "8.0 GiB expected"],
      ["c", 0, "not measured yet"],
      ["other programs", 1, "1.0 GiB"],
      ["free", 3, "3.0 GiB"],
    ]);
  });
});

describe("other programs", () => {
  it("are named with what they hold, where that is told", async () => {
    const others = [
      { name: "python", pid: 500, held_bytes: 12 * GIB },
      { name: "game.exe", pid: 400 },
    ];
    await show(<Home />, router({ pools: { main: pool({ memory: { total_bytes: 24 * GIB, free_bytes: GIB, foreign_bytes: 14 * GIB }, other_programs: others }) } }));
    const rows = [...document.body.querySelectorAll(".program")].map((row) => row.textContent);
    expect(rows).toEqual(["python (process 500)12.0 GiB", "game.exe (process 400)"]);
  });
});

describe("servers elsewhere", () => {
  it("have neither memory nor buttons", async () => {
    const cloud = resident("cloud", { in_flight: 2, max_in_flight: 4, adopted: true });
    await show(<Home />, router({ pools: { remotes: pool({ mode: "boundless", gauge: "none", residents: [cloud] }) } }));
    expect(text()).toContain("servers elsewhere, always on");
    expect(text()).toContain("2 of 4 running");
    expect(text()).not.toContain("found running");
    expect(text()).not.toContain("not measured");
    expect(document.body.querySelector(".resident button")).toBeNull();
  });
});

describe("home", () => {
  it("shows a swap, its phases and who waits, and cancels", async () => {
    const sent = answering(() => ({ cancelled: "r7" }));
    const phases = [
      { name: "stop", usual_s: 2, took_s: 1.5 },
      { name: "settle", usual_s: 0.5, took_s: null },
      { name: "start", usual_s: 20, took_s: null },
    ];
    const swap = { source: "a", target: "b", cause: "requested", phase: "settle", began_at: NOW - 2, phase_began_at: NOW - 1, expected_total_s: 22, phases };
    const entry = { id: "r7", place: 1, model: "beta", reason: "a to make way", arrived_at: NOW - 4, expected_at: NOW + 20, priority: "high" };
    await show(<Home />, router({ pools: { main: pool({ swaps: [swap], queue: [entry], queue_length: 3, waiting: { b: 3 } }) } }));
    expect(text(".swap")).toContain("a → b");
    expect(text(".swap")).toContain("2 s of usually 22 s, 20 s left");
    expect([...document.querySelectorAll(".phase")].map((each) => each.className)).toEqual(["phase over", "phase current", "phase ahead"]);
    expect(text(".queue")).toContain("3 requests wait");
    expect(text(".queue")).toContain("beta waits for a to make way · high priority");
    expect(text(".queue")).toContain("waited 4 s, in about 20 s");
    expect(text(".queue")).toContain("2 more behind them");
    await act(() => button("Cancel the request r7 for beta").click());
    expect(sent).toEqual([["/admin/cancel", { id: "r7" }]]);
  });

  it("asks before it unloads all, and says what goes", async () => {
    const sent = answering(() => ({ job: "j1", state: "done" }));
    const residents = [resident("a", { load_cost_s: 8 }), resident("b", { load_cost_s: 30 })];
    await show(
      <>
        <Home />
        <Questions />
      </>,
      router({ pools: { main: pool({ residents }) } }),
    );
    await act(() => button("Unload all").click());
    expect(sent).toEqual([]);
    expect(text("dialog")).toContain("Stops a, b, loading again takes about 38 s.");
    await act(async () => {
      [...document.querySelectorAll<HTMLButtonElement>("dialog button")].find((each) => each.textContent === "Unload all")?.click();
      await Promise.resolve();
    });
    expect(sent[0]).toEqual(["/admin/unload", { all: true, wait: false }]);
  });

  it("shows an error as it was written, its first line first", async () => {
    const failed = { b: { error: "exited with code 3\n<script>boom()</script>", count: 2, again_at: NOW + 30 } };
    await show(<Home />, router({ pools: { main: pool({ failed }) } }));
    expect(text(".failure summary")).toBe("exited with code 3");
    expect(text(".failure")).toContain("<script>boom()</script>");
    expect(text(".failure")).toContain("tried again in 30 s at the earliest");
    expect(document.querySelector("script")).toBeNull();
  });

  it("hides a pool that no engine uses", async () => {
    await show(<Home />, router({ pools: { main: pool(), unused: pool() } }));
    expect([...document.querySelectorAll("h2")].map((each) => each.textContent)).not.toContain("unused");
  });
});
