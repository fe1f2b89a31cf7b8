// Text of a model with the little markdown that models write: code, lists, headings, bold. Everything else is text.
import type { ComponentChildren } from "preact";
import { copy } from "../components/copy";

export function Markdown({ text }: { text: string }) {
  return <>{blocks(text)}</>;
}

function blocks(text: string): ComponentChildren[] {
  // Fences first: between them nothing else has a meaning. The last one may still be open.
  return text.split(/^(```[^\n]*\n[\s\S]*?(?:^```[ \t]*$|$(?![\s\S])))/m).map((part, index) => {
    const fence = /^```([^\n]*)\n([\s\S]*?)(?:\n?```[ \t]*)?$/.exec(part);
    return fence ? <Code key={index} language={fence[1]?.trim() ?? ""} text={fence[2] ?? ""} /> : paragraphs(part, index);
  });
}

function Code({ language, text }: { language: string; text: string }) {
  return (
    <div class="snippet">
      <pre tabIndex={0} aria-label={language ? `Code: ${language}` : "Code"}>
        {text}
      </pre>
      <button type="button" onClick={() => void copy(text)}>
        Copy
      </button>
    </div>
  );
}

function paragraphs(text: string, key: number): ComponentChildren {
  return (
    <div key={key}>
      {text
        .split(/\n{2,}/)
        .filter((part) => part.trim() !== "")
        .map((part, index) => block(part, index))}
    </div>
  );
}

const ITEM = /^\s*(?:[-*+]|\d+[.)])\s+/;

function block(text: string, key: number): ComponentChildren {
  const lines = text.split("\n");
  const heading = /^#{1,6}\s+(.*)$/.exec(lines[0] ?? "");
  if (heading && lines.length === 1) return <p key={key}><strong>{inline(heading[1] ?? "")}</strong></p>;
  if (lines.every((line) => ITEM.test(line) || /^\s{2,}\S/.test(line)) && ITEM.test(lines[0] ?? "")) {
    const items = lines.map((line) => <li key={line}>{inline(line.replace(ITEM, ""))}</li>);
    return /^\s*\d/.test(lines[0] ?? "") ? <ol key={key}>{items}</ol> : <ul key={key}>{items}</ul>;
  }
  return (
    <p key={key} class="prewrap">
      {inline(text)}
    </p>
  );
}

function inline(text: string): ComponentChildren[] {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part, index) => {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) return <code key={index}>{part.slice(1, -1)}</code>;
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) return <strong key={index}>{part.slice(2, -2)}</strong>;
    return part;
  });
}
