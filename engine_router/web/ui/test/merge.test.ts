import { describe, expect, it } from "vitest";
import { merged } from "../src/state/merge";

describe("a merge patch", () => {
  // The table in RFC 7396, appendix A.
  it.each([
    [{ a: "b" }, { a: "c" }, { a: "c" }],
    [{ a: "b" }, { b: "c" }, { a: "b", b: "c" }],
    [{ a: "b" }, { a: null }, {}],
    [{ a: "b", b: "c" }, { a: null }, { b: "c" }],
    [{ a: ["b"] }, { a: "c" }, { a: "c" }],
    [{ a: "c" }, { a: ["b"] }, { a: ["b"] }],
    [{ a: { b: "c" } }, { a: { b: "d", c: null } }, { a: { b: "d" } }],
    [{ a: [{ b: "c" }] }, { a: [1] }, { a: [1] }],
    [["a", "b"], ["c", "d"], ["c", "d"]],
    [{ a: "b" }, ["c"], ["c"]],
    [{ a: "foo" }, null, null],
    [{ a: "foo" }, "bar", "bar"],
    [{ e: null }, { a: 1 }, { e: null, a: 1 }],
    [[1, 2], { a: "b", c: null }, { a: "b" }],
    [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
  ])("turns %j by %j into %j", (target, patch, result) => {
    expect(merged(target, patch)).toEqual(result);
  });

  it("keeps what is the same, and changes nothing in place", () => {
    const before = { a: { x: 1 }, b: { y: 2 } };
    const after = merged(before, { b: { y: 3 } }) as typeof before;
    expect(after.a).toBe(before.a);
    expect(before.b.y).toBe(2);
  });

  it("takes any name for a name", () => {
    const patch = JSON.parse('{"__proto__": {"state": "ready"}, "constructor": {"state": "off"}}');
    const after = merged({}, patch) as Record<string, unknown>;
    expect(Object.keys(after).sort()).toEqual(["__proto__", "constructor"]);
    expect(({} as Record<string, unknown>)["state"]).toBeUndefined();
  });
});
