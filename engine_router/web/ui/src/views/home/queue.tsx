// Who waits in a pool: place, reason, estimate, and a way to end it.
import { counted } from "../../components/format";
import { cancel } from "../../state/actions";
import { useNow } from "../../state/clock";
import type { Pool, QueueEntry } from "../../types";

export function Queue({ pool }: { pool: Pool }) {
  const queue = pool.queue ?? [];
  if (queue.length === 0) return null;
  const length = pool.queue_length ?? queue.length;
  return (
    <div class="queue">
      <h3>{length === 1 ? "1 request waits" : `${length} requests wait`}</h3>
      <ol class="plain rows">
        {queue.map((entry) => (
          <Entry key={entry.id ?? `place ${entry.place}`} entry={entry} />
        ))}
      </ol>
      {length > queue.length && <p class="soft">{length - queue.length} more behind them.</p>}
    </div>
  );
}

function Entry({ entry }: { entry: QueueEntry }) {
  const { id, place, model, reason, client, priority } = entry;
  return (
    <li class="line">
      <span class="place">{place}.</span>
      <span class="what">
        <strong>{model}</strong>
        <span class="soft">
          {" "}
          waits for <bdi>{reason ?? "its turn"}</bdi>
          {client && (
            <>
              {" "}
              · from <bdi>{client}</bdi>
            </>
          )}
          {priority && priority !== "normal" ? ` · ${priority} priority` : ""}
        </span>
      </span>
      <Times entry={entry} />
      {id != null && (
        <button type="button" aria-label={`Cancel the request ${id} for ${model}`} onClick={() => void cancel(id)}>
          Cancel
        </button>
      )}
    </li>
  );
}

/** Says how long a request has waited, and when it will be served as far as swaps decide: nobody knows how long others' answers are. */
function Times({ entry }: { entry: QueueEntry }) {
  const now = useNow();
  const { arrived_at, waited_s, expected_at, estimate_s } = entry;
  const waited = counted(arrived_at == null ? waited_s : Math.max(0, now - arrived_at));
  const left = expected_at == null ? null : expected_at - now;
  const words = left !== null ? (left > 0 ? `in about ${counted(Math.max(1, left))}` : "any moment") : estimate_s == null ? "" : `after ${counted(Math.max(1, estimate_s))} of swaps`;
  return (
    <span class="soft">
      waited {waited}
      {words ? `, ${words}` : ""}
    </span>
  );
}
