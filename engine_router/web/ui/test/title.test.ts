import { describe, expect, it } from "vitest";
import { titleOf } from "../src/title";
import type { Pool, RouterState } from "../src/types";

const POOL: Pool = { gauge: "host", mode: "exclusive", residents: [], swaps: [], failed: {}, waiting: {} };
const router = (pool: Partial<Pool>): RouterState => ({
  version: "1",
  uptime_s: 1,
  pools: { main: { ...POOL, ...pool } },
  engines: {},
  models: {},
});
const resident = { resident: "a/m", engine: "a", model: "m", phase: "ready", in_flight: 0 };

describe("the title of the tab", () => {
  it.each([
    [null, false, "engine-router"],
    [router({}), true, "⚠ no connection · engine-router"],
    [router({}), false, "empty · engine-router"],
    [router({ residents: [resident] }), false, "m · engine-router"],
    [router({ residents: [{ ...resident, in_flight: 2 }] }), false, "▶ 2 running · engine-router"],
    [router({ residents: [{ ...resident, phase: "stuck" }] }), false, "⚠ stuck · engine-router"],
    [
      router({ swaps: [{ source: "a/m", target: "b/n", cause: "requested" }], waiting: { "b/n": 3 } }),
      false,
      "⇄ b/n · 3 waiting · engine-router",
    ],
    [router({ swaps: [{ source: "a/m", cause: "unload" }] }), false, "⇄ stopping a/m · engine-router"],
  ])("says what goes on (%#)", (state, isLost, title) => expect(titleOf(state, isLost)).toBe(title));
});
