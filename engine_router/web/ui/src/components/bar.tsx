// A bar that is divided into parts, such as a memory with what is in it.

export interface Part {
  name: string;
  amount: number;
  /** How it is shown: a class of the stylesheet, such as `c0` to `c7`, `free`, `foreign`, `asleep`. */
  look: string;
  /** What is said of it. */
  text: string;
}

interface BarProps {
  parts: readonly Part[];
  total: number;
  /** Sums it up for those who cannot see it. */
  label: string;
  /** An amount to mark, such as a budget. */
  mark?: number;
}

/** Shows parts of a whole. */
export function Bar({ parts, total, label, mark }: BarProps) {
  const sum = Math.max(total, parts.reduce((amount, part) => amount + part.amount, 0), 1);
  return (
    <div class="bar" role="img" aria-label={label}>
      {parts.map((part) => (
        <span
          key={part.name}
          class={`part ${part.look}`}
          style={{ width: `${(100 * part.amount) / sum}%` }}
          title={`${part.name}: ${part.text}`}
        />
      ))}
      {mark !== undefined && mark < sum && <span class="mark" style={{ left: `${(100 * mark) / sum}%` }} />}
    </div>
  );
}

/** Shows how far something is: `done` of `whole`; without a whole, that it goes on. */
export function Progress({ done, whole, label }: { done: number; whole: number | null; label: string }) {
  return whole ? (
    <progress aria-label={label} value={Math.min(done, whole)} max={whole} />
  ) : (
    <progress aria-label={label} />
  );
}
