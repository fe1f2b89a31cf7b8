import { describe, expect, it } from "vitest";
import { hasAny, mostOf, perSecond, share, stacked } from "../src/figures/series";
import { inWords } from "../src/views/figures";

describe("series of figures", () => {
  it("stacks what is in memory, and keeps gaps", () => {
    const [upper, lower] = stacked({ a: [1, null, 3], b: [10, 20, null] });
    expect([upper?.label, upper?.values]).toEqual(["b", [11, 20, null]]);
    expect([lower?.label, lower?.values]).toEqual(["a", [1, null, 3]]);
  });

  it("shows the models with the most, and the rest together", () => {
    const many = Object.fromEntries(Array.from({ length: 12 }, (_, index) => [`m${index}`, [index, 1]]));
    const series = mostOf(many);
    expect(series).toHaveLength(8);
    expect(series[0]?.label).toBe("m11");
    expect(series.at(-1)?.label).toBe("5 others");
    expect(mostOf({ idle: [0, null] })).toEqual([]);
  });

  it("never says more than all of a step, and says nothing of what is not known", () => {
    expect(share([5, 20, null], 10)).toEqual([50, 100, null]);
    expect(perSecond([50, null], 10)).toEqual([5, null]);
    expect(hasAny([{ label: "a", values: [null], colour: 0 }])).toBe(false);
  });

  it("puts a chart into words", () => {
    const series = [
      { label: "a", values: [1, 5, 2, null], colour: 0 },
      { label: "b", values: [null], colour: 1 },
    ];
    expect(inWords("Queue", series, (value) => `${value} s`)).toBe("Queue. a: 2 s at last, at most 5 s; b: nothing.");
  });
});
