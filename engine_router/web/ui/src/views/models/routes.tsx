// The routes: each with its models, and the one that it would choose now.
import { useMemo } from "preact/hooks";
import { Names } from "../../components/names";
import { StateTag } from "../../components/state";
import { type Column, Table } from "../../components/table";
import { link } from "../../router";
import { state } from "../../state/events";
import type { Route } from "../../types";

interface Row extends Route {
  id: string;
}

const COLUMNS: readonly Column<Row>[] = [
  { id: "id", title: "Route", cell: (row) => <bdi>{row.id}</bdi>, value: (row) => row.id },
  { id: "now", title: "Chooses now", cell: (row) => <Chosen row={row} />, value: (row) => row.leads_to },
  { id: "strategy", title: "Strategy", cell: (row) => row.strategy, value: (row) => row.strategy, optional: true },
  { id: "models", title: "Models", cell: (row) => <Names names={row.models} />, optional: true },
];

/** Shows nothing where there are no routes. */
export function Routes() {
  const routes = state.value?.routes;
  const rows = useMemo(() => Object.entries(routes ?? {}).map(([id, route]): Row => ({ ...route, id })), [routes]);
  if (rows.length === 0) return null;
  return (
    <section class="card" aria-label="Routes">
      <Table caption="Routes" columns={COLUMNS} rows={rows} rowKey={(row) => row.id} initial={{ by: "id", descending: false }} />
    </section>
  );
}

/** The model for a request that meets no conditions of a rule. */
function Chosen({ row }: { row: Row }) {
  if (!row.leads_to) return <span class="soft">none of them</span>;
  const models = state.value?.models ?? {};
  const model = Object.hasOwn(models, row.leads_to) ? models[row.leads_to] : undefined;
  return (
    <>
      <a href={link("models", row.leads_to)}>{row.leads_to}</a> {model && <StateTag state={model.state} />}
    </>
  );
}
