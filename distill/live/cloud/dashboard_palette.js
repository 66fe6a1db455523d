// Which action has which colour: the most frequent ones have one of their own, and keep it while they are frequent.

const COLOURS = 8;
const OTHER = COLOURS;

const palette = {
  slots: new Map(), // label -> 0..7
  classes: [],
  learn(classes) {
    this.classes = classes;
    // With few classes each has its colour from the start, the same for every viewer and after every reload.
    if (classes.length <= COLOURS) this.slots = new Map(classes.map((label, place) => [label, place]));
  },
  update(totals) {
    if (this.classes.length && this.classes.length <= COLOURS) return;
    const ranked = [...totals].sort((one, other) => other[1] - one[1]).map(([label]) => label);
    const frequent = new Set(ranked.slice(0, COLOURS));
    for (const label of frequent) {
      if (this.slots.has(label)) continue;
      if (this.slots.size === COLOURS) this.slots.delete([...this.slots.keys()].find((rare) => !frequent.has(rare)));
      this.give(label);
    }
  },
  give(label) {
    const taken = new Set(this.slots.values());
    const wish = Math.max(0, this.classes.indexOf(label));
    for (let step = 0; step < COLOURS; step += 1) {
      const slot = (wish + step) % COLOURS;
      if (!taken.has(slot)) return this.slots.set(label, slot);
    }
    return null;
  },
  slot(label) {
    return this.slots.get(label) ?? OTHER;
  },
};

function paint(node, slot) {
  const name = `a${slot}`;
  if (node.dataset.slot === name) return;
  node.classList.remove(node.dataset.slot ?? "a-none");
  node.classList.add(name);
  node.dataset.slot = name;
}

function together(labels) {
  return labels.size === 1 ? [...labels][0] : `other (${labels.size})`;
}

// {label, slot, count, sure} of each action that has a colour, the most frequent first, and of all the others together.
function ranking(counts) {
  const found = new Map();
  for (const { label, count, confidence } of counts) {
    const slot = palette.slot(label);
    const entry = found.get(slot) ?? { slot, count: 0, sure: 0, labels: new Set() };
    entry.count += count;
    entry.sure += count * confidence;
    entry.labels.add(label);
    found.set(slot, entry);
  }
  const entries = [...found.values()].map((entry) => ({ ...entry, label: together(entry.labels) }));
  return entries.sort((one, other) => (one.slot === OTHER) - (other.slot === OTHER) || other.count - one.count);
}
