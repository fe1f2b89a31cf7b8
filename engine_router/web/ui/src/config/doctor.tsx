// What works on the router's machine and what does not, looked at when somebody asks.
import { useState } from "preact/hooks";
import { get } from "../api";
import { attempt } from "../components/toast";
import type { Examination } from "./types";

const LOOKS = { ok: "ok", note: "busy", problem: "bad" } as const;
const WORDS = { ok: "ok", note: "note", problem: "problem" } as const;

export function Doctor() {
  const [found, setFound] = useState<Examination | null>(null);
  const [isLooking, setLooking] = useState(false);
  const look = async (): Promise<void> => {
    setLooking(true);
    await attempt(async () => setFound(await get<Examination>("/admin/doctor")));
    setLooking(false);
  };
  return (
    <section class="card" aria-labelledby="doctor">
      <h2 id="doctor">Doctor</h2>
      <p class="soft">Looks at the machine, the configuration and the running router. Nothing is started or changed.</p>
      <button type="button" disabled={isLooking} onClick={() => void look()}>
        {isLooking ? "Looking …" : "Look now"}
      </button>
      {found && (
        <ul class="plain findings" aria-live="polite">
          {found.findings.map((finding, index) => (
            <li key={index}>
              <span class={`tag ${LOOKS[finding.grade]}`}>{WORDS[finding.grade]}</span> <strong>{finding.subject}</strong> <bdi>{finding.words}</bdi>
              {finding.remedy && (
                <div class="soft">
                  → <bdi>{finding.remedy}</bdi>
                </div>
              )}
            </li>
          ))}
        </ul>
      )}
    </section>
  );
}
