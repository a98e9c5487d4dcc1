// The noise that a seed and a prompt give in Python: `seeded_generator` (chapter 1) and
// torch's normal numbers. So a seed draws the same image on both sides.

const K = new Uint32Array(64);
const H = new Uint32Array(8);
{
  // the first 32 bits of the fractional parts of roots of primes, exactly by integers
  const root = (p, power) => {
    let [low, high] = [0n, 1n << 40n];
    const target = BigInt(p) << BigInt(32 * power);
    while (high - low > 1n) {
      const middle = (low + high) / 2n;
      if (middle ** BigInt(power) <= target) low = middle;
      else high = middle;
    }
    return Number(low & 0xffffffffn);
  };
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  primes.forEach((p, i) => {
    K[i] = root(p, 3);
    if (i < 8) H[i] = root(p, 2);
  });
}

export function sha256(bytes) {
  const length = bytes.length;
  const padded = new Uint8Array(((length + 8) >> 6) * 64 + 64);
  padded.set(bytes);
  padded[length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(length / 2 ** 29));
  view.setUint32(padded.length - 4, length << 3);
  const state = H.slice();
  const w = new Uint32Array(64);
  const turn = (x, n) => (x >>> n) | (x << (32 - n));
  for (let block = 0; block < padded.length; block += 64) {
    for (let i = 0; i < 64; i++) {
      if (i < 16) w[i] = view.getUint32(block + 4 * i);
      else {
        const [a, b] = [w[i - 15], w[i - 2]];
        const s0 = turn(a, 7) ^ turn(a, 18) ^ (a >>> 3);
        const s1 = turn(b, 17) ^ turn(b, 19) ^ (b >>> 10);
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
      }
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const s1 = turn(e, 6) ^ turn(e, 11) ^ turn(e, 25);
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
      const s0 = turn(a, 2) ^ turn(a, 13) ^ turn(a, 22);
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((x, i) => (state[i] += x));
  }
  const digest = new DataView(new ArrayBuffer(32));
  state.forEach((x, i) => digest.setUint32(4 * i, x));
  return new Uint8Array(digest.buffer);
}

// As json.dumps writes a list of a number and texts: ", " between, only ASCII.
export function streamKey(seed, ...names) {
  const ascii = (text) =>
    JSON.stringify(text)
      .replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`)
      .replace(/\\u007f/g, "\x7f");
  return `[${[String(seed), ...names.map((n) => ascii(String(n)))].join(", ")}]`;
}

// The Mersenne Twister MT19937, seeded as torch does: by the low 32 bits.
export class MersenneTwister {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const x = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, x) + i;
    }
    this.at = 624;
  }

  next() {
    if (this.at === 624) {
      const s = this.state;
      for (let i = 0; i < 624; i++) {
        const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
        s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.at = 0;
    }
    let y = this.state[this.at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  // n standard normal numbers, n a multiple of 16: Box and Muller's transform on eight
  // pairs at a time, as torch.randn computes it on a CPU
  normal(n) {
    if (n < 16 || n % 16) throw new Error(`torch draws ${n} numbers in another way`);
    const x = new Float32Array(n);
    for (let i = 0; i < n; i++) x[i] = (this.next() & 0xffffff) / 2 ** 24;
    for (let i = 0; i < n; i += 16) {
      for (let j = i; j < i + 8; j++) {
        const radius = Math.sqrt(-2 * Math.log(1 - x[j]));
        const angle = 2 * Math.PI * x[j + 8];
        x[j] = radius * Math.cos(angle);
        x[j + 8] = radius * Math.sin(angle);
      }
    }
    return x;
  }
}

// The generator of a prompt's first image, as `prompt_generators` (chapter 15) makes it.
export function promptGenerator(prompt, seed) {
  const key = streamKey(seed, "prompt", prompt, 1);
  const digest = sha256(new TextEncoder().encode(key));
  return new MersenneTwister(new DataView(digest.buffer).getUint32(0, true));
}
