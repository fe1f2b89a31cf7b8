// One pool: its memory as a bar, what is in it, the swap under way, and who waits.
import { Bar, type Part } from "../../components/bar";
import { bytes, counted, duration } from "../../components/format";
import { Names } from "../../components/names";
import { StateTag } from "../../components/state";
import { link } from "../../router";
import { modelOf, pin, reset, unload, unloadCost } from "../../state/actions";
import { useNow } from "../../state/clock";
import { state } from "../../state/events";
import type { Failure, Pool, Resident } from "../../types";
import { Queue } from "./queue";
import { SwapUnderWay } from "./swap";

export function PoolCard({ name, pool }: { name: string; pool: Pool }) {
  const memory = pool.memory ?? {};
  const total = memory.total_bytes ?? pool.budget_bytes ?? 0;
  const parts = partsOf(pool);
  return (
    <section class="card pool" aria-labelledby={`pool-${name}`}>
      <div class="line">
        <h2 id={`pool-${name}`}>{name}</h2>
        <span class="soft">{about(pool)}</span>
      </div>
      {total > 0 && <Bar parts={parts} total={total} label={summary(name, parts, total)} {...(pool.budget_bytes ? { mark: pool.budget_bytes } : {})} />}
      <ul class="plain rows">
        {pool.residents.map((resident, index) => (
          <ResidentRow key={resident.resident} resident={resident} look={lookOf(index)} isElsewhere={isElsewhere(pool)} />
        ))}
        {memory.asleep_bytes || pool.asleep?.length ? (
          <li class="line">
            <span>
              <i class="swatch asleep" aria-hidden="true" />
              asleep: <Names names={pool.asleep ?? []} />
            </span>
            <span class="num">{bytes(memory.asleep_bytes)}</span>
          </li>
        ) : null}
        {memory.foreign_bytes ? (
          <li class="line">
            <span>
              <i class="swatch foreign" aria-hidden="true" />
              other programs
            </span>
            <span class="num">{bytes(memory.foreign_bytes)}</span>
          </li>
        ) : null}
        {(pool.other_programs ?? []).map((program) => (
          <li key={program.pid} class="line soft program">
            <span>
              <bdi>{program.tenant ?? program.name}</bdi> (process {program.pid})
            </span>
            <span class="num">{program.held_bytes == null ? "" : bytes(program.held_bytes)}</span>
          </li>
        ))}
        {memory.free_bytes != null && (
          <li class="line">
            <span>
              <i class="swatch free" aria-hidden="true" />
              free
            </span>
            <span class="num">
              {bytes(memory.free_bytes)} <span class="soft">of {bytes(total)}</span>
            </span>
          </li>
        )}
      </ul>
      {pool.residents.length === 0 && <p class="soft empty">Nothing is loaded.</p>}
      {pool.settling?.length ? <p class="soft">The memory of <Names names={pool.settling} /> is coming back.</p> : null}
      {pool.swaps.map((swap) => (
        <SwapUnderWay key={`${swap.source} ${swap.target} ${swap.began_at}`} swap={swap} />
      ))}
      {Object.entries(pool.failed).map(([resident, failure]) => (
        <FailureRow key={resident} resident={resident} failure={failure} />
      ))}
      <Queue pool={pool} />
    </section>
  );
}

const COLOURS = 8;
/** Tells whether what is in a pool runs elsewhere, so that nothing of it is in a memory here. */
const isElsewhere = (pool: Pool): boolean => pool.mode === "boundless";
const lookOf = (index: number): string => `c${index % COLOURS}`;

function about(pool: Pool): string {
  if (isElsewhere(pool)) return "servers elsewhere, always on";
  const sharing = pool.budget_bytes ? `budget ${bytes(pool.budget_bytes)}` : pool.mode;
  return `${sharing} · gauge: ${pool.gauge}`;
}

/** Divides a pool's memory: residents as they were measured, or as they are expected to become. */
export function partsOf(pool: Pool): readonly Part[] {
  const { asleep_bytes, foreign_bytes, free_bytes } = pool.memory ?? {};
  const parts = pool.residents.map((resident, index) => ({
    name: resident.resident,
    amount: resident.footprint_bytes ?? resident.need_bytes ?? 0,
    look: lookOf(index),
    text: held(resident),
  }));
  const others: [string, string, number | null | undefined][] = [
    ["asleep", "asleep", asleep_bytes],
    ["other programs", "foreign", foreign_bytes],
    ["free", "free", free_bytes],
  ];
  for (const [name, look, amount] of others) if (amount) parts.push({ name, look, amount, text: bytes(amount) });
  return parts;
}

function held(resident: Resident): string {
  if (resident.footprint_bytes != null) return bytes(resident.footprint_bytes);
  return resident.need_bytes == null ? "not measured yet" : `${bytes(resident.need_bytes)} expected`;
}

const summary = (name: string, parts: readonly Part[], total: number): string =>
  `Memory of ${name}, ${bytes(total)}: ${parts.map((part) => `${part.name} ${part.text}`).join(", ")}`;

function ResidentRow({ resident, look, isElsewhere }: { resident: Resident; look: string; isElsewhere: boolean }) {
  const router = state.value;
  const model = router && modelOf(router, resident.resident);
  return (
    <li class="line resident">
      <span class="who">
        {!isElsewhere && <i class={`swatch ${look}`} aria-hidden="true" />}
        <StateTag state={resident.phase} />
        {model ? <a href={link("models", model)}>{resident.resident}</a> : <bdi>{resident.resident}</bdi>}
        <span class="soft">
          <Use resident={resident} isElsewhere={isElsewhere} />
        </span>
      </span>
      {!isElsewhere && <span class="num">{held(resident)}</span>}
      {!isElsewhere && (
        <span class="buttons">
          {model && (
            <button
              type="button"
              aria-pressed={resident.pinned === true}
              title="What is pinned is neither evicted nor stopped when idle"
              onClick={() => void pin(model, !resident.pinned)}
            >
              {resident.pinned ? "Unpin" : "Pin"}
            </button>
          )}
          <button type="button" title={unloadCost([resident])} aria-label={`Unload ${resident.resident}`} onClick={() => void unload(resident)}>
            Unload
          </button>
        </span>
      )}
      {resident.error && <span class="bad whole">{resident.error}</span>}
    </li>
  );
}

/** Says what a resident does, and how long it stays. */
function Use({ resident, isElsewhere }: { resident: Resident; isElsewhere: boolean }) {
  const now = useNow();
  const { in_flight, waiting, idle_since_at, held_until_at, expires_at, max_in_flight } = resident;
  const most = max_in_flight ? ` of ${max_in_flight}` : "";
  const words = [in_flight ? `${in_flight}${most} running` : idle_since_at == null ? "" : `idle ${counted(now - idle_since_at)}`];
  if (waiting) words.push(`${waiting} waiting`);
  if (held_until_at != null && held_until_at > now) words.push(`held ${duration(held_until_at - now)} for a follow-up`);
  if (expires_at != null && expires_at > now) words.push(`unloaded in ${counted(expires_at - now)}`);
  if (resident.adopted && !isElsewhere) words.push("found running");
  return <>{words.filter(Boolean).join(" · ")}</>;
}

function FailureRow({ resident, failure }: { resident: string; failure: Failure }) {
  const router = state.value;
  const model = (router && modelOf(router, resident)) ?? resident;
  return (
    <div class="failure">
      <div class="line">
        <span class="who">
          <StateTag state="failed" />
          <a href={link("models", model, { tab: "log" })}>{resident}</a>
          <span class="soft">
            {failure.count > 1 ? `${failure.count} times in a row · ` : ""}
            <Again failure={failure} />
          </span>
        </span>
        <span class="buttons">
          <button type="button" title="Forget its failures, so that the next request starts it" onClick={() => void reset(model)}>
            Reset
          </button>
        </span>
      </div>
      <Reason text={failure.error} />
    </div>
  );
}

/** Shows an error: its first line, and the rest where one opens it. */
function Reason({ text }: { text: string }) {
  const [first = "", ...more] = text.split("\n");
  if (more.length === 0) return <div class="bad">{first}</div>;
  return (
    <details class="bad">
      <summary>{first}</summary>
      <pre class="prewrap">{more.join("\n")}</pre>
    </details>
  );
}

function Again({ failure }: { failure: Failure }) {
  const now = useNow();
  const { again_at } = failure;
  if (again_at == null) return null;
  return <>{again_at > now ? `tried again in ${counted(again_at - now)} at the earliest` : "the next request tries again"}</>;
}
