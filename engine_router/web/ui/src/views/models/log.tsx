// What the engine of a model writes, as it is written.
import { query } from "../../api";
import { Shown, useLog } from "../../logs/shown";

const LINES_AT_FIRST = 500;

export function ModelLog({ id }: { id: string }) {
  const [lines, problem] = useLog(`/admin/logs${query({ model: id, lines: LINES_AT_FIRST, follow: 1 })}`, false);
  return (
    <>
      {problem && <p class="bad" role="alert">{problem}</p>}
      <Shown lines={lines} label={`Log of ${id}`} wraps isFollowed />
    </>
  );
}
