// A swap under way: each phase against what it usually takes.
import { counted, duration } from "../../components/format";
import { useNow } from "../../state/clock";
import type { Swap, SwapPhase } from "../../types";

const WORDS: Record<string, string> = { drain: "drain", stop: "stop", settle: "memory", start: "start" };

export function SwapUnderWay({ swap }: { swap: Swap }) {
  const now = useNow();
  const elapsed = swap.began_at == null ? null : Math.max(0, now - swap.began_at);
  const total = swap.expected_total_s ?? null;
  const left = total === null || elapsed === null ? null : total - elapsed;
  const names = swap.source && swap.target ? `${swap.source} → ${swap.target}` : (swap.target ?? `${swap.source ?? ""} stops`);
  return (
    <div class="swap" role="group" aria-label={`Swap under way: ${names}`}>
      <div class="line">
        <strong>
          {swap.source && swap.target ? (
            <>
              <bdi>{swap.source}</bdi> → <bdi>{swap.target}</bdi>
            </>
          ) : swap.target ? (
            <bdi>{swap.target}</bdi>
          ) : (
            <>
              <bdi>{swap.source}</bdi> stops
            </>
          )}
        </strong>
        <span class="soft">
          <bdi>{swap.cause}</bdi> · {counted(elapsed)}
          {total === null ? "" : ` of usually ${counted(total)}`}
          {left === null ? "" : left > 0 ? `, ${counted(Math.max(1, left))} left` : ", longer than usual"}
        </span>
      </div>
      <ol class="phases">
        {(swap.phases ?? []).map((phase) => (
          <Phase key={phase.name} phase={phase} elapsed={phase.name === swap.phase ? now - (swap.phase_began_at ?? now) : null} />
        ))}
      </ol>
    </div>
  );
}

/** Shows one phase. `elapsed` is null where it is over, or has not begun. */
function Phase({ phase, elapsed }: { phase: SwapPhase; elapsed: number | null }) {
  const { usual_s: usual = null, took_s: took = null } = phase;
  const isOver = took !== null;
  const isLate = elapsed !== null && usual !== null && elapsed > usual * 1.5 + 1;
  const part = isOver ? 1 : elapsed === null ? 0 : usual ? Math.min(0.97, elapsed / usual) : 0.5;
  const look = isOver ? "over" : elapsed === null ? "ahead" : isLate ? "late" : "current";
  return (
    <li class={`phase ${look}`} style={{ flexGrow: Math.max(0.2, usual ?? took ?? 1) }} aria-current={elapsed === null ? undefined : "step"}>
      <span class="track">
        <span style={{ width: `${100 * part}%` }} />
      </span>
      <span class="name">{WORDS[phase.name] ?? phase.name}</span>{" "}
      <span class="soft">
        {isOver ? duration(took) : elapsed === null ? "" : counted(elapsed)}
        {usual === null ? "" : isOver || elapsed !== null ? ` (usually ${duration(usual)})` : `usually ${duration(usual)}`}
      </span>
    </li>
  );
}
