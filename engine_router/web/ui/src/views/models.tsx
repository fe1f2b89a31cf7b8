// All models.
import { StateTag } from "../components/state";
import { type Column, Table } from "../components/table";
import { state } from "../state/events";
import type { Model } from "../types";

type Row = Model & { id: string };

const COLUMNS: readonly Column<Row>[] = [
  { id: "id", title: "Model", cell: (row) => row.id, value: (row) => row.id },
  { id: "engine", title: "Engine", cell: (row) => row.engine, value: (row) => row.engine },
  { id: "state", title: "State", cell: (row) => <StateTag state={row.state} />, value: (row) => row.state },
];

export default function Models() {
  const rows = Object.entries(state.value?.models ?? {}).map(([id, model]) => ({ id, ...model }));
  return (
    <>
      <h1>Models</h1>
      <Table caption="Models" columns={COLUMNS} rows={rows} rowKey={(row) => row.id} empty="No models." />
    </>
  );
}
