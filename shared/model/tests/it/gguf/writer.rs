//! Writes small GGUF files: the format by hand, and llama models with random weights.
#![allow(unreachable_pub, reason = "tests of several crates include this file")]
#![allow(dead_code, reason = "shared by test crates that each use a part")]

/// ggml's numbers of the types that [`Writer::matrix`] can fill.
pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q4_0: u32 = 2;
pub const Q4_1: u32 = 3;
pub const Q8_0: u32 = 8;
pub const BF16: u32 = 30;

const ALIGNMENT: usize = 32;

/// A file in the making.
pub struct Writer {
    pairs: (u64, Vec<u8>),
    directory: (u64, Vec<u8>),
    data: Vec<u8>,
    random: u64,
}

impl Writer {
    pub fn new(seed: u64) -> Writer {
        Writer { pairs: (0, Vec::new()), directory: (0, Vec::new()), data: Vec::new(), random: seed | 1 }
    }

    /// A metadata pair of type `kind`, its value encoded already.
    pub fn pair(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.pairs.0 += 1;
        put_string(&mut self.pairs.1, key);
        self.pairs.1.extend(kind.to_le_bytes());
        self.pairs.1.extend(value);
    }

    pub fn string(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        put_string(&mut bytes, value);
        self.pair(key, 8, &bytes);
    }

    pub fn number(&mut self, key: &str, value: usize) {
        self.pair(key, 4, &(value as u32).to_le_bytes());
    }

    pub fn float(&mut self, key: &str, value: f32) {
        self.pair(key, 6, &value.to_le_bytes());
    }

    /// A tensor with its dimensions in ggml's order and its data encoded already.
    pub fn tensor(&mut self, name: &str, dims: &[usize], kind: u32, data: &[u8]) {
        self.directory.0 += 1;
        let to = &mut self.directory.1;
        put_string(to, name);
        to.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| to.extend((*dim as u64).to_le_bytes()));
        to.extend(kind.to_le_bytes());
        to.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// A matrix of random weights between about -`scale` and `scale`.
    pub fn matrix(&mut self, name: &str, inputs: usize, outputs: usize, kind: u32, scale: f32) {
        let mut data = Vec::new();
        let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
        match kind {
            F32 => (0..inputs * outputs).for_each(|_| data.extend((self.random() * scale).to_le_bytes())),
            F16 => (0..inputs * outputs).for_each(|_| data.extend(half(self.random() * scale))),
            BF16 => (0..inputs * outputs)
                .for_each(|_| data.extend(half::bf16::from_f32(self.random() * scale).to_le_bytes())),
            _ => (0..inputs * outputs / 32).for_each(|_| {
                let (step, bytes) = if kind == Q8_0 { (scale / 127.0, 32) } else { (scale / 8.0, 16) };
                data.extend(half(step));
                if kind == Q4_1 {
                    data.extend(half(-7.5 * step));
                }
                data.extend((0..bytes).map(|_| (self.random() * 128.0) as i8 as u8));
            }),
        }
        self.tensor(name, &[inputs, outputs], kind, &data);
    }

    /// The whole file.
    pub fn finish(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.directory.0.to_le_bytes());
        file.extend(self.pairs.0.to_le_bytes());
        file.extend(&self.pairs.1);
        file.extend(&self.directory.1);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(&self.data);
        file
    }

    /// A number in -1 to 1 that looks random.
    fn random(&mut self) -> f32 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

fn put_string(to: &mut Vec<u8>, value: &str) {
    to.extend((value.len() as u64).to_le_bytes());
    to.extend(value.as_bytes());
}

/// The shape of a random llama.
#[derive(Clone, Copy, Debug)]
pub struct Tiny {
    pub seed: u64,
    pub layers: usize,
    pub queries: usize,
    pub kv: usize,
    /// A multiple of 16; `queries * head` must be one of 32.
    pub head: usize,
    /// Leading values of a head that are rotated.
    pub rope: usize,
    /// Whether the output head is the embedding table.
    pub tied: bool,
    /// Whether the weights of queries, keys and values are quantized, too.
    pub quantized: bool,
    /// How many positions attention sees at most.
    pub window: Option<usize>,
    pub context: usize,
}

pub const VOCABULARY: usize = 90;
pub const CONTEXT: usize = 1024;

impl Tiny {
    pub fn new(seed: u64) -> Tiny {
        Tiny {
            seed,
            layers: 2,
            queries: 4,
            kv: 2,
            head: 16,
            rope: 16,
            tied: true,
            quantized: false,
            window: None,
            context: CONTEXT,
        }
    }

    /// The model as a file, with every supported type among its weights.
    pub fn file(self) -> Vec<u8> {
        let mut to = Writer::new(self.seed);
        let (hidden, wide) = (64, 96);
        let (q, kv) = (self.queries * self.head, self.kv * self.head);
        to.string("general.architecture", "llama");
        to.string("general.name", "tiny");
        to.number("llama.block_count", self.layers);
        to.number("llama.context_length", self.context);
        to.number("llama.embedding_length", hidden);
        to.number("llama.feed_forward_length", wide);
        to.number("llama.attention.head_count", self.queries);
        to.number("llama.attention.head_count_kv", self.kv);
        to.number("llama.attention.key_length", self.head);
        to.number("llama.rope.dimension_count", self.rope);
        to.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
        to.float("llama.rope.freq_base", 10_000.0);
        if let Some(window) = self.window {
            to.number("llama.attention.sliding_window", window);
        }
        let kinds = if self.quantized { [Q4_1, Q4_0, Q8_0] } else { [F32, F16, BF16] };
        to.matrix("token_embd.weight", hidden, VOCABULARY, Q8_0, 1.0);
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            let ones = [1.0f32.to_le_bytes(), 0.5f32.to_le_bytes()].concat().repeat(hidden / 2);
            to.tensor(&name("attn_norm"), &[hidden], F32, &ones);
            to.matrix(&name("attn_q"), hidden, q, kinds[0], 0.6);
            to.matrix(&name("attn_k"), hidden, kv, kinds[1], 0.6);
            to.matrix(&name("attn_v"), hidden, kv, kinds[2], 0.4);
            to.matrix(&name("attn_output"), q, hidden, Q4_0, 0.3);
            to.tensor(&name("ffn_norm"), &[hidden], F32, &ones);
            to.matrix(&name("ffn_gate"), hidden, wide, Q4_1, 0.4);
            to.matrix(&name("ffn_up"), hidden, wide, Q4_1, 0.4);
            to.matrix(&name("ffn_down"), wide, hidden, Q8_0, 0.3);
        }
        to.tensor("output_norm.weight", &[hidden], F32, &1.0f32.to_le_bytes().repeat(hidden));
        if !self.tied {
            to.matrix("output.weight", hidden, VOCABULARY, Q8_0, 0.5);
        }
        to.finish()
    }
}
