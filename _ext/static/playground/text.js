// Prompts: cleaned, split into tokens, unknown words found. The Python counterparts are
// `clean_text` (chapter 1), `Tokenizer` and `oov_words` (chapter 7).

const INVISIBLE = /[\u00ad\u061c\u200b\u200e\u200f\ufeff\u202a-\u202e\u2060-\u206f]/gu;
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/gu;
const STRAY_JOINERS = /(?<![^\s\u0000-\u036f])[\u200c\u200d]+/gu;

export function cleanText(text) {
  let clean = text.normalize("NFC").replace(INVISIBLE, "").replace(CONTROL, " ");
  clean = clean.normalize("NFC").replace(STRAY_JOINERS, "").normalize("NFC");
  return clean.split(/\s+/u).filter(Boolean).join(" ");
}

// The words of a text with where they stand: [{ word, start, end }].
export function findWords(text) {
  const word = /[\p{L}\p{N}_]+(?:-[\p{L}\p{N}_]+)*/gu;
  return [...text.matchAll(word)].map((m) => ({
    word: m[0].toLowerCase(),
    start: m.index,
    end: m.index + m[0].length,
  }));
}

// Twice the letters in common, by longest common blocks, over all letters: difflib's ratio.
export function similarity(a, b) {
  const common = (i1, i2, j1, j2) => {
    let [size, besti, bestj] = [0, i1, j1];
    for (let i = i1; i < i2; i++) {
      for (let j = j1; j < j2; j++) {
        let k = 0;
        while (i + k < i2 && j + k < j2 && a[i + k] === b[j + k]) k++;
        if (k > size) [size, besti, bestj] = [k, i, j];
      }
    }
    if (!size) return 0;
    const left = common(i1, besti, j1, bestj);
    return size + left + common(besti + size, i2, bestj + size, j2);
  };
  const total = a.length + b.length;
  return total ? (2 * common(0, a.length, 0, b.length)) / total : 1;
}

export function similarWords(word, known, n = 2) {
  const scored = known.map((k) => [similarity(k, word), k]).filter(([s]) => s >= 0.6);
  scored.sort((x, y) => y[0] - x[0] || (x[1] < y[1] ? 1 : -1));
  return scored.slice(0, n).map(([, k]) => k);
}

// Unknown words in order, each once, with similar known ones.
export function unknownWords(text, known) {
  const set = new Set(known);
  const words = new Set(findWords(text.toLowerCase()).map((w) => w.word));
  return [...words]
    .filter((w) => !set.has(w))
    .map((word) => ({ word, similar: similarWords(word.slice(0, 40), known) }));
}

// GPT-2's way to write bytes as letters, so that a token never holds a space.
function byteLetters() {
  const letters = [];
  let extra = 256;
  for (let b = 0; b < 256; b++) {
    const plain = (b > 32 && b < 127) || (b > 160 && b !== 173);
    letters.push(String.fromCodePoint(plain ? b : extra++));
  }
  return letters;
}
const LETTERS = byteLetters();
const PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

export class Tokenizer {
  constructor({ vocabulary, merges, max_length, end, words }) {
    this.vocabulary = new Map(Object.entries(vocabulary));
    this.ranks = new Map(merges.map((pair, i) => [pair, i]));
    this.names = new Map([...this.vocabulary].map(([name, id]) => [id, name]));
    Object.assign(this, { maxLength: max_length, end, words });
  }

  // The tokens of one piece: the most frequent pair is joined first.
  merge(piece) {
    const parts = [...new TextEncoder().encode(piece)].map((b) => LETTERS[b]);
    while (parts.length > 1) {
      let [best, at] = [Infinity, -1];
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    return parts;
  }

  // { ids, cut }: token ids with the end token, and whether some were left out.
  encode(text) {
    const ids = [];
    for (const part of cleanText(text).split(/(<pad>|<end>)/)) {
      if (part === "<pad>" || part === "<end>") {
        ids.push(this.vocabulary.get(part));
      } else if (part) {
        const lower = part.normalize("NFC").toLowerCase();
        for (const [piece] of (/^\s/u.test(lower) ? lower : ` ${lower}`).matchAll(PIECES)) {
          for (const token of this.merge(piece)) ids.push(this.vocabulary.get(token));
        }
      }
    }
    const cut = ids.length >= this.maxLength;
    return { ids: [...ids.slice(0, this.maxLength - 1), this.end], cut };
  }

  // Words of a row of ids, each with the positions of its tokens, for attention maps.
  groups(ids) {
    const found = [];
    ids.forEach((id, i) => {
      if (id === this.end) return;
      const name = this.names.get(id);
      const text = name.replace(/Ġ/g, "");
      if (name.startsWith("Ġ") || !found.length) found.push({ word: text, positions: [i] });
      else {
        found.at(-1).word += text;
        found.at(-1).positions.push(i);
      }
    });
    return found;
  }
}

// What is wrong with a prompt, in one line; null if it can be drawn.
export function promptProblem(text, most = 1000) {
  const clean = cleanText(text);
  if (!clean)
    return "The prompt is empty; describe an image, for instance “a blue and red dragon”.";
  const n = [...clean].length;
  if (n > most) return `The prompt has ${n} characters, at most ${most} are read; shorten it.`;
  if (/\p{Cs}/u.test(clean)) return "The prompt holds half a character; retype it.";
  return null;
}

// A caption of the grammar from chosen attributes; what is not chosen is left out.
export function writeCaption(c) {
  const colour = [c.body_colour, c.second_colour].filter(Boolean).join(" and ");
  const kind = [c.size, colour, c.species].filter(Boolean).join(" ");
  let text = `${/^[aeiou]/.test(kind) ? "an" : "a"} ${kind}`;
  if (c.eye_colour) text += ` with ${c.eye_colour} eyes`;
  if (c.action) text += `, ${c.action}`;
  if (c.facing) text += `, facing ${c.facing}`;
  return text;
}

const ACTION_WORDS = {
  standing: "standing",
  sleeping: "sleeping",
  asleep: "sleeping",
  jumping: "jumping",
  leaping: "jumping",
  running: "running",
  swimming: "swimming",
  fire: "breathing fire",
  flames: "breathing fire",
  "fire-breathing": "breathing fire",
  balloon: "holding a balloon",
};
const SIZE_WORDS = { small: "small", little: "small", large: "large", big: "large" };

// The attributes that a prompt states, as `critters.parse_caption` finds them. `parts` are
// the words for what has the second colour, such as "wings".
export function statedAttributes(text, attributes, parts) {
  const words =
    cleanText(text)
      .toLowerCase()
      .match(/[^\s,.]+/gu) ?? [];
  const line = words.join(" ");
  const colour = attributes.body_colour.join("|");
  const found = {};
  const kind = new RegExp(
    `(?:(${colour}) and )?(?:(${colour}) )?\\b(${attributes.species.join("|")})\\b`,
  ).exec(line);
  if (kind) {
    found.species = kind[3];
    if (kind[1] || kind[2]) found.body_colour = kind[1] || kind[2];
    if (kind[1] && kind[2]) found.second_colour = kind[2];
  }
  const part = new RegExp(`\\b(${colour}) (${parts.join("|")})\\b`).exec(line);
  if (part) found.second_colour = part[1];
  const eyes = new RegExp(`\\b(${attributes.eye_colour.join("|")}) eyes\\b`).exec(line);
  if (eyes) found.eye_colour = eyes[1];
  const own = (table, word) => (Object.hasOwn(table, word) ? table[word] : undefined);
  for (const word of words) {
    const action = own(ACTION_WORDS, word);
    const size = own(SIZE_WORDS, word);
    if (action) found.action = action;
    if (attributes.facing.includes(word)) found.facing = word;
    if (attributes.size.includes(size)) found.size = size;
  }
  return found;
}
