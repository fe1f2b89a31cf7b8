import { render } from "preact";
import { act } from "preact/test-utils";
import { afterEach, describe, expect, it } from "vitest";
import { InFlightRequests } from "../src/activity/in_flight";
import { PastRequests } from "../src/activity/past";
import { Editor } from "../src/config/editor";
import { inSentence } from "../src/components/format";
import { loadCost, unloadCost } from "../src/state/actions";
import { session } from "../src/state/session";
import { titleOf } from "../src/title";
import Home from "../src/views/home";
import { ModelList } from "../src/views/models/list";
import { ModelPage } from "../src/views/models/page";
import type { RouterState } from "../src/types";
import { answering, leaking, NOW, pool, resident, router, show, text } from "./helpers";

// It would turn round whatever comes after it in its line: "gnp.exe" is read as "exe.png".
const TURNED = "\u202egnp.exe";

const hostile = (): RouterState =>
  router({
    pools: {
      main: pool({
        asleep: [TURNED, "b"],
        settling: [TURNED],
        other_programs: [{ name: TURNED, pid: 7, held_bytes: 1 }],
        residents: [resident(TURNED, { error: TURNED, load_cost_s: 3, in_flight: 1 }), resident("b")],
        swaps: [
          { source: TURNED, target: `${TURNED}2`, cause: TURNED, phase: "stop", began_at: NOW - 1 },
          { source: null, target: TURNED, cause: "requested", began_at: NOW - 2 },
          { source: TURNED, target: null, cause: "idle", began_at: NOW - 3 },
        ],
        queue: [{ id: "r1", place: 1, model: TURNED, reason: `${TURNED} to make way`, client: TURNED, arrived_at: NOW - 4 }],
        failed: { [TURNED]: { error: `${TURNED}\nmore ${TURNED}`, count: 2, again_at: NOW + 3 } },
      }),
    },
    models: { [TURNED]: { engine: "a", state: "ready", resident: TURNED, aliases: [`${TURNED}1`, `${TURNED}2`], capabilities: [TURNED, "completion"] } },
    routes: { [TURNED]: { strategy: "first", models: [TURNED, "b"], leads_to: TURNED } },
    decisions: [{ at: NOW, pool: TURNED, text: `${TURNED} starts: requested` }, { at: NOW, pool: "b", text: "b" }],
    notices: [{ at: NOW, message: `${TURNED} was found` }],
    jobs: { j1: { job: "j1", kind: "pull", subject: TURNED, state: "running", progress: { step: "file", note: TURNED, done_bytes: 1 } } },
    in_flight: 1,
  });

const request = { id: "r1", row: 1, at: NOW, model: TURNED, engine: TURNED, endpoint: TURNED, key: TURNED, client: TURNED, status: 500, error: TURNED, elapsed_s: 1, duration_s: 1, state: "running" };

afterEach(() => render(null, document.body));

describe("a name that turns its line round", () => {
  it.each([
    ["home", <Home />],
    ["the list of models", <ModelList />],
    ["a model", <ModelPage id={TURNED} />],
    ["requests in flight", <InFlightRequests />],
    ["past requests", <PastRequests />],
    ["the faults of the configuration", <Editor text="" readOnly problems={[{ path: TURNED, message: TURNED, line: 1, column: 1 }]} more={0} onInput={() => {}} />],
  ])("changes nothing around it: %s", async (_, view) => {
    session.value = { authenticated: true, key: null, admin: true, asks_for_key: false };
    const details = { settings: [{ name: "argv", value: [TURNED], from: TURNED }], command: [TURNED], architecture: TURNED, quantization: "Q4", starts: [], file: TURNED };
    answering((path) => (path.includes("/models/") ? details : { enabled: true, total: 1, offset: 0, limit: 50, requests: [request] }));
    await show(view, hostile());
    await act(() => new Promise((resolve) => setTimeout(resolve, 20)));
    expect(text()).toContain(TURNED);
    expect(leaking(document.body, "\u202e")).toEqual([]);
  });

  it("is found where it is not isolated", async () => {
    await show(<p>{TURNED} is loaded</p>);
    expect(leaking(document.body, "\u202e")).toEqual([`${TURNED} is loaded`]);
  });

  it("changes no sentence either", () => {
    expect(titleOf(router({ pools: { main: pool({ residents: [resident(TURNED)] }) } }), false)).toBe("\ufffdgnp.exe · engine-router");
    expect(unloadCost([resident(TURNED)])).toBe("stops \ufffdgnp.exe");
    expect(loadCost(hostile(), TURNED)).not.toContain("\u202e");
    expect(inSentence("a\u0000b\u2069c\u061cd\u0085")).toBe("a\ufffdb\ufffdc\ufffdd\ufffd");
    expect(inSentence("שלום-7B")).toBe("שלום-7B");
  });
});

describe("the speed of a request in flight", () => {
  it("is that of the pieces of the answer, until the engine tells one", async () => {
    const rows = [
      { ...request, id: "r1", tokens_per_s: null, frames_per_s: 41.23 },
      { ...request, id: "r2", tokens_per_s: 39.5, frames_per_s: 41.23 },
      { ...request, id: "r3", tokens_per_s: null, frames_per_s: null },
    ];
    answering(() => ({ requests: rows }));
    await show(<InFlightRequests />, router({ in_flight: 3 }));
    await act(() => new Promise((resolve) => setTimeout(resolve, 20)));
    const column = [...document.querySelectorAll("th")].findIndex((each) => each.textContent === "Tokens/s");
    expect([...document.querySelectorAll("tbody tr")].map((row) => row.children[column]?.textContent)).toEqual(["≈ 41.2", "39.5", ""]);
  });
});
