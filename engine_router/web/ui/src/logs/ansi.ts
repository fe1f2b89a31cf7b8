// Colours of terminals: text with escape sequences as pieces of text with classes. What is no colour is left out.

export interface Piece {
  text: string;
  /** Classes, such as `a-red a-bold`; empty for plain text. */
  look: string;
}

const NAMES = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
/** Longer lines are cut: nobody reads a megabyte in one line, and no browser shows it well. */
export const LONGEST = 4000;
// CSI sequences (ECMA-48), OSC strings up to their end, and any other escape; then controls but for tab.
// eslint-disable-next-line no-control-regex
const SEQUENCE = /\u001b\[([0-9;:]*)[ -/]*([@-~])|\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|\u001b.?|[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

/** Returns the pieces of a line. */
export function pieces(line: string): Piece[] {
  const cut = line.length > LONGEST;
  const text = cut ? line.slice(0, LONGEST) : line;
  const found: Piece[] = [];
  let [from, look] = [0, ""];
  const add = (to: number): void => {
    if (to > from) found.push({ text: text.slice(from, to), look });
  };
  for (const match of text.matchAll(SEQUENCE)) {
    add(match.index);
    from = match.index + match[0].length;
    if (match[2] === "m") look = after(look, match[1] ?? "");
  }
  add(text.length);
  if (cut) found.push({ text: ` … ${(line.length - LONGEST).toLocaleString()} more characters`, look: "a-faint" });
  return found;
}

/** Returns a line without its escape sequences. */
export function plain(line: string): string {
  return line.replace(SEQUENCE, "");
}

/** Returns the look after the parameters of a sequence that selects one ("SGR"). */
function after(look: string, parameters: string): string {
  const codes = parameters.split(/[;:]/).map(Number);
  let classes = new Set(look.split(" ").filter(Boolean));
  for (let index = 0; index < codes.length; index += 1) {
    const code = codes[index] ?? 0;
    if (code === 0) classes = new Set();
    else if (code === 1) classes.add("a-bold");
    else if (code === 2) classes.add("a-faint");
    else if (code === 3) classes.add("a-italic");
    else if (code === 4) classes.add("a-under");
    else if (code === 22) ["a-bold", "a-faint"].forEach((name) => classes.delete(name));
    else if (code === 39) withColour(classes, "");
    else if (code >= 30 && code <= 37) withColour(classes, `a-${NAMES[code - 30]}`);
    else if (code >= 90 && code <= 97) withColour(classes, `a-${NAMES[code - 90]}`);
    else if (code === 38 || code === 48) index += codes[index + 1] === 5 ? 2 : 4; // of many colours: left as it is
  }
  return [...classes].join(" ");
}

function withColour(classes: Set<string>, colour: string): void {
  for (const name of NAMES) classes.delete(`a-${name}`);
  if (colour) classes.add(colour);
}
