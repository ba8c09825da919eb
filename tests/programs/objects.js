// Builds about MIB megabytes of objects, walks them in order and at random, and prints a hash of what it read: the same
// for the same arguments.
//
//   node objects.js MIB
'use strict';

const PER_MIB = 2400;
const count = Math.max(1, Number(process.argv[2] || 100) * PER_MIB);
const words = 'account active address amount batch cache carrier city client code count currency device email event field'.split(' ');

let state = 12345;
function random(below) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return Math.floor((state / 4294967296) * below);
}

function record(id) {
    const tags = [];
    for (let i = 0; i < 4; i++) tags.push(words[random(words.length)]);
    return { id, name: words[random(words.length)] + id, score: random(1e6) / 7, tags, history: [random(1e9), random(1e9), id], next: null };
}

function hash(h, r) {
    return (Math.imul(h ^ r.id ^ r.name.charCodeAt(0) ^ r.history[1] ^ r.tags[2].length, 16777619) + Math.floor(r.score)) >>> 0;
}

const records = new Array(count);
for (let i = 0; i < count; i++) records[i] = record(i);
let h = 2166136261;
for (let pass = 0; pass < 2; pass++) {
    for (const r of records) {
        h = hash(h, r);
        if (r.id % 50 === pass) r.next = records[random(count)];
    }
}
for (let i = 0; i < count / 2; i++) {
    const r = records[random(count)];
    h = hash(h, r.next || r);
}
console.log(`${count} records, hash ${h}`);
