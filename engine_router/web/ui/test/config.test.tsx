import { render } from "preact";
import { afterEach, describe, expect, it } from "vitest";
import { Editor } from "../src/config/editor";
import { show, text } from "./helpers";

afterEach(() => render(null, document.body));

describe("the faults of a configuration", () => {
  const problems = [{ path: "server.x", message: "unknown key", line: 2, column: 1 }];

  it("are listed, and those counted that are not", async () => {
    await show(<Editor text={"[server]\nx = 1"} readOnly={false} problems={problems} more={9980} onInput={() => {}} />);
    expect(text(".problems li:first-child")).toBe("line 2server.x: unknown key");
    expect(text(".problems li:last-child")).toBe("and 9,980 more");
    expect(text(".gutter .wrong")).toBe("2");
  });

  it("say nothing of others where there are none", async () => {
    await show(<Editor text="x" readOnly={false} problems={problems} more={0} onInput={() => {}} />);
    expect(document.querySelectorAll(".problems li")).toHaveLength(1);
  });
});
