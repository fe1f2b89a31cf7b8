import { describe, expect, it } from "vitest";
import { ago, bytes, context, duration } from "../src/components/format";

describe("numbers in words", () => {
  it.each([
    [0, "0 B"],
    [999, "999 B"],
    [1536, "2 KiB"],
    [1048576, "1.0 MiB"],
    [25876977254, "24.1 GiB"],
    [107374182400, "100 GiB"],
    [2199023255552, "2.0 TiB"],
    [null, ""],
  ])("%j bytes are %j", (value, text) => expect(bytes(value)).toBe(text));

  it.each([
    [0.004, "0.00 s"],
    [0.42, "0.42 s"],
    [0.999, "1.0 s"],
    [9.96, "10 s"],
    [95, "95 s"],
    [119.6, "2 min 00 s"],
    [185, "3 min 05 s"],
    [8040, "2 h 14 min"],
    [273600, "3 d 4 h"],
    [undefined, ""],
  ])("%j seconds are %j", (value, text) => expect(duration(value)).toBe(text));

  it.each([
    [99.2, "now"],
    [95, "5 s ago"],
    [40, "60 s ago"],
    [null, ""],
  ])("%j at 100 was %j", (at, text) => expect(ago(at, 100)).toBe(text));

  it.each([
    [32768, "32k"],
    [2048, "2k"],
    [null, ""],
  ])("a context of %j is %j", (tokens, text) => expect(context(tokens)).toBe(text));
});
