// A table that can be sorted, here or by the router, and stays fast with many rows.
import type { ComponentChildren, RefObject } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";

export interface Column<Row> {
  id: string;
  title: string;
  /** What a cell shows. Text is shown as text, whatever it holds. */
  cell: (row: Row) => ComponentChildren;
  /** What the page sorts by; without it the column is not sorted here. Absent values come last. */
  value?: (row: Row) => string | number | null | undefined;
  /** The router can sort by this column: the name that it has there. */
  sort?: string;
  numeric?: boolean;
  /** Its cells are short, and not broken into lines. */
  short?: boolean;
  /** A narrow screen does without it. */
  optional?: boolean;
}

export interface Order {
  by: string;
  descending: boolean;
}

interface TableProps<Row> {
  caption: string;
  columns: readonly Column<Row>[];
  rows: readonly Row[];
  rowKey: (row: Row) => string;
  /** The order, where the router sorts; with `onOrder`. */
  order?: Order;
  onOrder?: (order: Order) => void;
  /** The order at first, where the page sorts. */
  initial?: Order;
  empty?: ComponentChildren;
  rowClass?: (row: Row) => string;
}

const ROWS_AT_FIRST = 100;
const ROWS_MORE = 200;

export function Table<Row>(props: TableProps<Row>) {
  const { caption, columns, rows, rowKey, onOrder, empty, rowClass } = props;
  const [own, setOwn] = useState<Order | null>(props.initial ?? null);
  const order = onOrder ? (props.order ?? null) : own;
  const sorted = useMemo(() => (onOrder ? rows : inOrder(rows, columns, order)), [rows, columns, order, onOrder]);
  const [most, sentinel] = useGrowing(sorted.length);
  const sortBy = (column: Column<Row>, name: string) => {
    const isSame = order?.by === name;
    (onOrder ?? setOwn)({ by: name, descending: isSame ? !order.descending : column.numeric === true });
  };
  return (
    <div class="scroll" role="group" aria-label={caption} tabIndex={0}>
      <table>
        <caption class="hidden">{caption}</caption>
        <thead>
          <tr>
            {columns.map((column) => {
              const name = onOrder ? column.sort : column.value && column.id;
              const isBy = name !== undefined && order?.by === name;
              return (
                <th
                  key={column.id}
                  scope="col"
                  class={classOf(column)}
                  aria-sort={isBy ? (order.descending ? "descending" : "ascending") : undefined}
                >
                  {name === undefined ? (
                    column.title
                  ) : (
                    <button type="button" class="sort" onClick={() => sortBy(column, name)}>
                      {column.title}
                      <span aria-hidden="true">{isBy ? (order.descending ? " ↓" : " ↑") : ""}</span>
                    </button>
                  )}
                </th>
              );
            })}
          </tr>
        </thead>
        <tbody>
          {sorted.slice(0, most).map((row) => (
            <tr key={rowKey(row)} class={rowClass?.(row)}>
              {columns.map((column) => (
                <td key={column.id} class={classOf(column)}>
                  {column.cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {sorted.length === 0 && <p class="soft empty">{empty ?? "Nothing here."}</p>}
      {most < sorted.length && (
        <div ref={sentinel} class="soft empty">
          {sorted.length - most} more
        </div>
      )}
    </div>
  );
}

/** Returns how many rows are shown: more of them whenever the end of the table comes near. */
function useGrowing(length: number): [number, RefObject<HTMLDivElement | null>] {
  const [most, setMost] = useState(ROWS_AT_FIRST);
  const sentinel = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const element = sentinel.current;
    if (element === null || typeof IntersectionObserver === "undefined") return;
    const observer = new IntersectionObserver(
      (entries) => entries.some((entry) => entry.isIntersecting) && setMost((before) => before + ROWS_MORE),
      { rootMargin: "600px" },
    );
    observer.observe(element);
    return () => observer.disconnect();
  }, [most, most < length]);
  return [most, sentinel];
}

function classOf<Row>(column: Column<Row>): string {
  const classes = { num: column.numeric, short: column.short, optional: column.optional };
  return Object.entries(classes).filter(([, isSo]) => isSo).map(([name]) => name).join(" ");
}

/** Sorts rows, those without a value last in either direction. */
export function inOrder<Row>(rows: readonly Row[], columns: readonly Column<Row>[], order: Order | null): readonly Row[] {
  const value = columns.find((column) => column.id === order?.by)?.value;
  if (order === null || value === undefined) return rows;
  const sign = order.descending ? -1 : 1;
  return [...rows].sort((one, other) => {
    const [a, b] = [value(one) ?? null, value(other) ?? null];
    if (a === null || b === null) return Number(a === null) - Number(b === null);
    return sign * (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b)));
  });
}

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
