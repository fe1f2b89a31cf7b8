// A log on the page: followed, and its last lines in a box.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { count } from "../components/format";
import { pieces } from "./ansi";
import { Follower, type Line } from "./follower";

const SHOWN = 500;

/** Follows a log. While it is paused what was there is shown; the rest is read and comes afterwards. */
export function useLog(path: string, isPaused: boolean): [readonly Line[], string] {
  const [shown, show] = useState<{ lines: readonly Line[]; problem: string }>({ lines: [], problem: "" });
  const follower = useRef<Follower | null>(null);
  const paused = useRef(isPaused);
  paused.current = isPaused;
  const look = (): void => {
    const current = follower.current;
    if (current !== null && !paused.current) show({ lines: current.lines, problem: current.problem });
  };
  useEffect(() => {
    show({ lines: [], problem: "" });
    const made = (follower.current = new Follower(path, look));
    return () => made.close();
  }, [path]);
  useEffect(look, [isPaused]);
  return [shown.lines, shown.problem];
}

/** Shows the last lines; further ones when they are wanted. It stays at the end while one is at the end. */
export function Shown({ lines, label, wraps, isFollowed }: { lines: readonly Line[]; label: string; wraps: boolean; isFollowed: boolean }) {
  const [most, setMost] = useState(SHOWN);
  const box = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  useEffect(() => {
    if (isFollowed && atEnd.current) box.current?.scrollTo(0, box.current.scrollHeight);
  }, [lines, wraps, isFollowed]);
  const scrolled = (): void => {
    const element = box.current;
    if (element !== null) atEnd.current = element.scrollTop + element.clientHeight >= element.scrollHeight - 40;
  };
  const shown = lines.slice(-most);
  return (
    <div ref={box} class={`log ${wraps ? "wraps" : ""}`} tabIndex={0} role="log" aria-live="off" aria-label={label} onScroll={scrolled}>
      {shown.length < lines.length && (
        <button type="button" class="quiet" onClick={() => setMost(most + 4 * SHOWN)}>
          {count(lines.length - shown.length)} lines before these
        </button>
      )}
      {shown.map((line) => (
        <LineShown key={line.number} text={line.text} />
      ))}
      {lines.length === 0 && <p class="soft empty">Nothing was written yet.</p>}
    </div>
  );
}

function LineShown({ text }: { text: string }) {
  const parts = useMemo(() => pieces(text), [text]);
  return (
    <div class="line">
      {parts.map((piece, index) => (piece.look ? <span key={index} class={piece.look}>{piece.text}</span> : piece.text))}
    </div>
  );
}
