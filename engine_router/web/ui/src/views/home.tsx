// What is going on: memory, swaps, who waits, what was decided.
import { useState } from "preact/hooks";
import { Progress } from "../components/bar";
import { Dialog } from "../components/dialog";
import { bytes, counted, time } from "../components/format";
import { cancel, load, loadCost, unloadAll } from "../state/actions";
import { useNow } from "../state/clock";
import { state } from "../state/events";
import type { Decision, Job, RouterState } from "../types";
import { PoolCard } from "./home/pool";

export default function Home() {
  const router = state.value;
  if (router === null) return <h1>Home</h1>;
  const used = new Set(Object.values(router.engines).map((engine) => engine.pool));
  const pools = Object.entries(router.pools).filter(([name, pool]) => used.has(name) || pool.residents.length > 0);
  const downloads = Object.values(router.jobs ?? {}).filter((job) => job.progress);
  return (
    <>
      <Head router={router} />
      <div class="home">
        <div>
          {pools.map(([name, pool]) => (
            <PoolCard key={name} name={name} pool={pool} />
          ))}
          {pools.length === 0 && <p class="card">No engine is configured yet: engine-router init writes a configuration, engine-router add adds an engine.</p>}
        </div>
        <div>
          {downloads.length > 0 && <Downloads jobs={downloads} />}
          <Decisions router={router} />
          <Notices router={router} />
        </div>
      </div>
    </>
  );
}

function Head({ router }: { router: RouterState }) {
  const [isChoosing, setChoosing] = useState(false);
  const residents = Object.values(router.pools).flatMap((pool) => (pool.mode === "boundless" ? [] : pool.residents));
  return (
    <div class="head">
      <h1>Home</h1>
      <p class="soft" role="status">
        {router.in_flight ?? 0} running · {router.waiting ?? 0} waiting · <Uptime router={router} />
        {router.adopting && " · looking at what runs already"}
      </p>
      <div class="buttons">
        <button type="button" class="primary" onClick={() => setChoosing(true)}>
          Load a model …
        </button>
        <button type="button" class="danger" disabled={residents.length === 0} onClick={() => void unloadAll(residents)}>
          Unload all
        </button>
      </div>
      {isChoosing && <Chooser router={router} onClose={() => setChoosing(false)} />}
    </div>
  );
}

function Uptime({ router }: { router: RouterState }) {
  const now = useNow();
  return <>up {counted(router.started_at == null ? router.uptime_s : Math.max(0, now - router.started_at))}</>;
}

const SHOWN = 50;

/** Lets one choose a model to load, and says what that costs. */
function Chooser({ router, onClose }: { router: RouterState; onClose: () => void }) {
  const [search, setSearch] = useState("");
  const wanted = search.toLowerCase();
  const found = Object.keys(router.models).filter((id) => id.toLowerCase().includes(wanted));
  const choose = (id: string): void => {
    onClose();
    void load(id);
  };
  return (
    <Dialog title="Load a model" onClose={onClose}>
      <input
        type="search"
        aria-label="Search models"
        placeholder="Search"
        autofocus
        onInput={(event) => setSearch(event.currentTarget.value)}
      />
      <ul class="plain choices">
        {found.slice(0, SHOWN).map((id) => (
          <li key={id}>
            <button type="button" disabled={router.models[id]?.state === "ready"} onClick={() => choose(id)}>
              <strong>{id}</strong>
              <span class="soft">{router.models[id]?.state === "ready" ? "loaded" : loadCost(router, id)}</span>
            </button>
          </li>
        ))}
      </ul>
      <p class="soft">{found.length > SHOWN ? `${found.length - SHOWN} more: search for one.` : found.length ? "" : "No model is called so."}</p>
      <div class="buttons end">
        <button type="button" onClick={onClose}>
          Close
        </button>
      </div>
    </Dialog>
  );
}

export function Downloads({ jobs }: { jobs: readonly Job[] }) {
  return (
    <section class="card">
      <h2>Downloads</h2>
      <ul class="plain rows">
        {jobs.map(({ job, subject, progress }) => (
          <li key={job}>
            <div class="line">
              <strong>{subject}</strong>
              <button type="button" aria-label={`Cancel the download of ${subject}`} onClick={() => void cancel(job)}>
                Cancel
              </button>
            </div>
            {progress && (
              <>
                <Progress done={progress.done_bytes} whole={progress.total_bytes ?? null} label={`Download of ${subject}`} />
                <div class="soft">
                  <bdi>{progress.note ?? progress.step}</bdi> · {bytes(progress.done_bytes)}
                  {progress.total_bytes ? ` of ${bytes(progress.total_bytes)}` : ""}
                  {progress.bytes_per_s ? ` · ${bytes(progress.bytes_per_s)}/s` : ""}
                  {progress.left_s ? ` · ${counted(progress.left_s)} left` : ""}
                </div>
              </>
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}

const FIRST = 8;

function Decisions({ router }: { router: RouterState }) {
  const decisions = [...(router.decisions ?? [])].reverse();
  const hasPools = new Set(decisions.map((decision) => decision.pool)).size > 1;
  return (
    <section class="card">
      <h2>Last decisions</h2>
      <DecisionList decisions={decisions.slice(0, FIRST)} hasPools={hasPools} />
      {decisions.length > FIRST && (
        <details>
          <summary>{decisions.length - FIRST} before</summary>
          <DecisionList decisions={decisions.slice(FIRST)} hasPools={hasPools} />
        </details>
      )}
      {decisions.length === 0 && <p class="soft empty">Nothing had to be decided yet.</p>}
    </section>
  );
}

function DecisionList({ decisions, hasPools }: { decisions: readonly Decision[]; hasPools: boolean }) {
  return (
    <ol class="plain rows">
      {decisions.map((decision) => (
        <li key={`${decision.at} ${decision.text}`} class="dated">
          <time class="soft">{time(decision.at)}</time>
          <span>
            {hasPools && decision.pool && (
              <span class="soft">
                <bdi>{decision.pool}</bdi>:{" "}
              </span>
            )}
            <bdi>{decision.text}</bdi>
          </span>
        </li>
      ))}
    </ol>
  );
}

function Notices({ router }: { router: RouterState }) {
  const notices = [...(router.notices ?? [])].reverse();
  if (notices.length === 0) return null;
  return (
    <section class="card">
      <h2>Notices</h2>
      <ol class="plain rows">
        {notices.map((notice) => (
          <li key={`${notice.at} ${notice.message}`} class="dated">
            <time class="soft">{time(notice.at)}</time>
            <span class={notice.severity === "error" || notice.event === "resident_died" ? "bad" : ""}>{notice.message}</span>
          </li>
        ))}
      </ol>
    </section>
  );
}
