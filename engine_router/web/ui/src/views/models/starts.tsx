// How long each start of a model took.
import { Chart } from "../../components/chart";
import { duration, time } from "../../components/format";
import { type Column, Table } from "../../components/table";
import type { Start } from "./page";

const COLUMNS: readonly Column<Start>[] = [
  { id: "at", title: "Time", cell: (row) => time(row.at), value: (row) => row.at, short: true },
  { id: "took", title: "Took", cell: (row) => duration(row.took_s), value: (row) => row.took_s, numeric: true },
  { id: "result", title: "Result", cell: (row) => (isOk(row) ? row.result : <span class="bad">{row.error ?? row.result}</span>), value: (row) => row.result },
];

const isOk = (start: Start): boolean => start.result == null || start.result === "ok";

/** `starts` is null where no history is kept. */
export default function Starts({ starts }: { starts: readonly Start[] | null }) {
  if (starts === null) return <p class="soft empty">No history is kept.</p>;
  const inTime = [...starts].sort((one, other) => one.at - other.at);
  const of = (wanted: boolean) => inTime.map((start) => (isOk(start) === wanted ? (start.took_s ?? null) : null));
  if (starts.length === 0) return <p class="soft empty">It was not started yet, as far as is remembered.</p>;
  return (
    <>
      <Chart
        label="Seconds that each start took"
        times={inTime.map((start) => start.at)}
        series={[
          { label: "started", values: of(true), colour: 0, kind: "points" },
          { label: "failed", values: of(false), colour: 6, kind: "points" },
        ]}
        format={duration}
      />
      <Table caption="Starts" columns={COLUMNS} rows={[...inTime].reverse()} rowKey={(row) => String(row.at)} />
    </>
  );
}
