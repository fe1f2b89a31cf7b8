import { render } from "preact";
import { act } from "preact/test-utils";
import { afterEach, describe, expect, it } from "vitest";
import { type Column, inOrder, type Order, Table } from "../src/components/table";

interface Row {
  id: string;
  size?: number;
}

const COLUMNS: readonly Column<Row>[] = [
  { id: "id", title: "Model", cell: (row) => row.id, value: (row) => row.id, sort: "model" },
  { id: "size", title: "Size", cell: (row) => row.size, value: (row) => row.size, numeric: true },
];
const ROWS: readonly Row[] = [{ id: "b10", size: 1 }, { id: "B9" }, { id: "a", size: 2 }];

afterEach(() => render(null, document.body));

const show = (table: preact.ComponentChild) => act(() => render(table, document.body));
const firsts = () => [...document.querySelectorAll("tbody tr")].map((row) => row.firstElementChild?.textContent);
const press = (title: string) =>
  act(() => [...document.querySelectorAll("button")].find((button) => button.textContent?.startsWith(title))?.click());

describe("a table", () => {
  it("sorts names as people do, and what is not known last, either way", () => {
    const ids = (order: Order) => inOrder(ROWS, COLUMNS, order).map((row) => row.id);
    expect(ids({ by: "id", descending: false })).toEqual(["a", "B9", "b10"]);
    expect(ids({ by: "size", descending: false })).toEqual(["b10", "a", "B9"]);
    expect(ids({ by: "size", descending: true })).toEqual(["a", "b10", "B9"]);
  });

  it("is sorted by its headings, and says so", async () => {
    await show(<Table caption="t" columns={COLUMNS} rows={ROWS} rowKey={(row) => row.id} />);
    await press("Size");
    expect(firsts()).toEqual(["a", "b10", "B9"]);
    await press("Size");
    expect(firsts()).toEqual(["b10", "a", "B9"]);
    expect(document.querySelector("th.num")?.getAttribute("aria-sort")).toBe("ascending");
  });

  it("leaves the order to the router where that sorts", async () => {
    const wanted: Order[] = [];
    const onOrder = (order: Order) => void wanted.push(order);
    const order = { by: "model", descending: false };
    await show(<Table caption="t" columns={COLUMNS} rows={ROWS} rowKey={(row) => row.id} order={order} onOrder={onOrder} />);
    await press("Model");
    expect(wanted).toEqual([{ by: "model", descending: true }]);
    expect(firsts()).toEqual(["b10", "B9", "a"]);
    expect(document.querySelectorAll("th button")).toHaveLength(1);
  });

  it("shows a part of many rows at first", async () => {
    const rows = Array.from({ length: 5000 }, (_, index) => ({ id: `m${index}` }));
    await show(<Table caption="t" columns={COLUMNS} rows={rows} rowKey={(row) => row.id} />);
    expect(firsts().length).toBeLessThan(500);
    expect(document.body.textContent).toContain("more");
  });

  it("shows foreign text as text", async () => {
    const rows = [{ id: '<img src=x onerror="boom()">\u202e' }];
    await show(<Table caption="t" columns={COLUMNS} rows={rows} rowKey={(row) => row.id} />);
    expect(document.querySelector("img")).toBeNull();
    expect(firsts()).toEqual([rows[0]?.id]);
  });
});
