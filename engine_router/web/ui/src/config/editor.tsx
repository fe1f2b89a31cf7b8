// The text of the configuration, with the numbers of its lines and what is wrong with them.
import { useMemo, useRef } from "preact/hooks";
import { count } from "../components/format";
import type { Problem } from "./types";

interface EditorProps {
  text: string;
  readOnly: boolean;
  problems: readonly Problem[];
  /** How many there are beyond those. */
  more: number;
  onInput: (text: string) => void;
}

export function Editor({ text, readOnly, problems, more, onInput }: EditorProps) {
  const area = useRef<HTMLTextAreaElement>(null);
  const gutter = useRef<HTMLDivElement>(null);
  const lines = useMemo(() => text.split("\n").length, [text]);
  const bad = useMemo(() => new Set(problems.map(({ line }) => line)), [problems]);
  const scrolled = (): void => {
    if (gutter.current && area.current) gutter.current.scrollTop = area.current.scrollTop;
  };
  const goTo = ({ line, column }: Problem): void => {
    if (area.current === null || line == null) return;
    const at = offsetOf(text, line, column ?? 1);
    area.current.focus();
    area.current.setSelectionRange(at, at);
    area.current.scrollTop = (area.current.scrollHeight * (line - 3)) / lines;
  };
  return (
    <>
      <div class="editor">
        <div ref={gutter} class="gutter" aria-hidden="true">
          {Array.from({ length: lines }, (_, index) => (
            <div key={index} class={bad.has(index + 1) ? "wrong" : ""}>
              {index + 1}
            </div>
          ))}
        </div>
        <textarea
          ref={area}
          aria-label="engines.toml"
          aria-invalid={problems.length > 0}
          spellcheck={false}
          wrap="off"
          readOnly={readOnly}
          value={text}
          onInput={(event) => onInput(event.currentTarget.value)}
          onScroll={scrolled}
        />
      </div>
      <ul class="plain problems" aria-live="polite">
        {problems.map((problem, index) => (
          <li key={index} class="bad">
            {problem.line != null && (
              <button type="button" class="quiet" onClick={() => goTo(problem)}>
                line {problem.line}
              </button>
            )}
            {problem.path && <code>{problem.path}</code>}
            {problem.path && ": "}
            <bdi>{problem.message}</bdi>
          </li>
        ))}
        <More count={more} />
      </ul>
    </>
  );
}

/** Says how many faults are not listed. */
export function More({ count: more }: { count: number }) {
  return more > 0 ? <li class="soft">and {count(more)} more</li> : null;
}

/** Returns where a place in a text is, counted in characters; lines and columns begin at 1. */
export function offsetOf(text: string, line: number, column: number): number {
  let start = 0;
  for (let left = line - 1; left > 0; left -= 1) {
    const end = text.indexOf("\n", start);
    if (end < 0) break;
    start = end + 1;
  }
  return Math.min(start + column - 1, text.length);
}

/** Shows a difference: what goes, and what comes. */
export function Difference({ diff }: { diff: string }) {
  return (
    <pre class="diff" tabIndex={0} aria-label="What would change">
      {diff.split("\n").map((line, index) => (
        <div key={index} class={{ "+": "comes", "-": "goes", "@": "soft" }[line.charAt(0)] ?? ""}>
          {line}
        </div>
      ))}
    </pre>
  );
}
