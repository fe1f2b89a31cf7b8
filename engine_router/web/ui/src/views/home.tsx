// What is going on: memory, swaps, who waits.
import { Bar } from "../components/bar";
import { bytes } from "../components/format";
import { StateTag } from "../components/state";
import { state } from "../state/events";
import type { Pool } from "../types";

export default function Home() {
  return (
    <>
      <h1>Home</h1>
      {Object.entries(state.value?.pools ?? {}).map(([name, pool]) => (
        <PoolCard key={name} name={name} pool={pool} />
      ))}
    </>
  );
}

function PoolCard({ name, pool }: { name: string; pool: Pool }) {
  const parts = pool.residents.map((resident, index) => ({
    name: resident.resident,
    amount: resident.footprint_bytes ?? 0,
    look: `c${index % 8}`,
    text: bytes(resident.footprint_bytes),
  }));
  return (
    <section class="card">
      <h2>{name}</h2>
      <Bar parts={parts} total={pool.memory?.total_bytes ?? pool.budget_bytes ?? 0} label={`Memory of ${name}`} />
      <ul class="plain">
        {pool.residents.map((resident) => (
          <li key={resident.resident}>
            <StateTag state={resident.phase} /> {resident.resident} {bytes(resident.footprint_bytes)}
          </li>
        ))}
      </ul>
    </section>
  );
}
