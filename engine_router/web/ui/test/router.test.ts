import { describe, expect, it } from "vitest";
import { link, parsed } from "../src/router";

describe("a place in the page", () => {
  it.each(["qwen3", "hf.co/unsloth/Qwen3-GGUF:Q4_K_M", "/models/a b.gguf", "100%", "a?b#c", "<script>"])(
    "survives the way through the address: %s",
    (id) => {
      const place = parsed(link("models", id, { tab: "log" }));
      expect([place.view, place.rest, place.params.get("tab")]).toEqual(["models", id, "log"]);
    },
  );

  it("is home without a fragment", () => {
    expect(parsed("").view).toBe("");
    expect(parsed("#/").view).toBe("");
  });

  it("survives what nobody would write", () => {
    expect(parsed("#/models/%E0%A4%A").rest).toBe("%E0%A4%A");
  });
});
