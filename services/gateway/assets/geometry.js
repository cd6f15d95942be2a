// Where the parts of the flow's picture lie, in units of its view box: boxes as [x, y, width, height].

/** Side by side. */
export const WIDE = {
  width: 1240,
  height: 248,
  stages: {
    ingest: { queue: [62, 10, 118, 122], box: [196, 10, 184, 122] },
    prefill: { queue: [452, 10, 118, 122], box: [586, 10, 184, 122] },
    decode: { queue: [852, 10, 118, 122], box: [986, 10, 184, 122] },
  },
  store: [586, 188, 584, 54],
  legend: [
    { at: [62, 196], text: "A dot is a worker, filled as far as its slots are in use." },
    { at: [62, 214], text: "Rates are means over three seconds, shares over a minute." },
  ],
  arrows: {
    in: { d: "M4 71H58", label: [4, 60], anchor: "start" },
    baton1: { d: "M380 71H448", label: [414, 60], anchor: "middle" },
    baton2: { d: "M770 71H848", label: [809, 60], anchor: "middle" },
    out: { d: "M1170 71H1232", label: [1174, 60], anchor: "start" },
    reuse: { d: "M618 188V138", label: [608, 166], anchor: "end" },
    put: { d: "M738 132V184", label: [748, 166], anchor: "start" },
    get: { d: "M1078 188V138", label: [1068, 166], anchor: "end" },
  },
};

/** One below the other, for narrow windows. */
export const NARROW = {
  width: 340,
  height: 622,
  stages: {
    ingest: { queue: [2, 30, 112, 122], box: [130, 30, 206, 122] },
    prefill: { queue: [2, 186, 112, 122], box: [130, 186, 206, 122] },
    decode: { queue: [2, 470, 112, 122], box: [130, 470, 206, 122] },
  },
  store: [130, 362, 206, 54],
  legend: [],
  arrows: {
    in: { d: "M58 4V26", label: [70, 20], anchor: "start" },
    baton1: { d: "M146 152V168H58V182", label: [70, 180], anchor: "start" },
    baton2: { d: "M146 308V328H58V466", label: [66, 440], anchor: "start" },
    out: { d: "M233 592V616", label: [245, 610], anchor: "start" },
    reuse: { d: "M180 362V314", label: [172, 344], anchor: "end" },
    put: { d: "M220 308V358", label: [230, 340], anchor: "start" },
    get: { d: "M233 416V466", label: [243, 446], anchor: "start" },
  },
};
