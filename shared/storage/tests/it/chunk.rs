//! The chunk format: whatever goes in comes out, and whatever else is read is refused.

use baton_contract::kv::{Block, Shape};
use baton_storage::{
    ChunkId, Codec,
    chunk::{self, Error, Header},
    codec::Decoder,
    seal::KeyNumber,
};
use proptest::{collection::vec, prelude::*};

const ID: ChunkId = ChunkId([0x5a; 32]);

/// bf16 bit patterns: anything, one value again and again, the special ones, and such as cluster.
fn values(count: usize) -> BoxedStrategy<Vec<u16>> {
    let special = prop::sample::select(vec![0, 0x8000, 1, 0x807f, 0x7f80, 0xff80, 0x7fc0, 0x7f81, 0xffff, 0x7f7f]);
    let clustered = (-4.0f32..4.0).prop_map(|value| half::bf16::from_f32(value).to_bits());
    prop_oneof![
        vec(any::<u16>(), count),
        any::<u16>().prop_map(move |value| vec![value; count]),
        vec(special, count),
        vec(clustered, count),
    ]
    .boxed()
}

fn blocks() -> impl Strategy<Value = (Shape, Block)> {
    (0usize..5, 1usize..40, 0usize..60).prop_flat_map(|(layers, width, tokens)| {
        let shape = Shape { layers, width };
        vec(values(shape.layer_values(tokens)), layers).prop_map(move |layers| (shape, Block { tokens, layers }))
    })
}

proptest! {
    #[test]
    fn every_block_comes_back((shape, block) in blocks()) {
        for codec in Codec::ALL {
            let bytes = chunk::encode(&block, &shape, codec, &ID).unwrap();
            prop_assert!(bytes.len() <= chunk::max_len(&shape, block.tokens).unwrap());
            let found = chunk::decode(&bytes, &shape, block.tokens, &ID).unwrap();
            // Bit for bit, where the codec promises it.
            prop_assert!(found == block || !codec.is_lossless() && found.fits(&shape));
        }
    }

    #[test]
    fn any_bytes_are_refused(mut bytes in vec(any::<u8>(), 0..400), genuine_start in any::<bool>()) {
        if genuine_start && bytes.len() >= 6 {
            bytes[..6].copy_from_slice(b"BTNKV\x02");
        }
        let shape = Shape { layers: 2, width: 3 };
        prop_assert!(chunk::decode(&bytes, &shape, 5, &ID).is_err());
    }
}

/// Stored bytes outlive a build: these change only together with the format's version.
#[test]
fn the_bytes_stay_the_same_across_builds() {
    let block = Block { tokens: 1, layers: vec![vec![0x3f80, 0xc000]] };
    let bytes = chunk::encode(&block, &Shape { layers: 1, width: 1 }, Codec::Raw, &ID).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = [
        "42544e4b56",                       // BTNKV
        "02",                               // version
        "6a000000",                         // bytes of header
        "010000000100000001000000",         // layers, width, tokens
        "00",                               // codec
        "00",                               // open
        &"00".repeat(8 + 16),               // number of the key, salt
        &"5a".repeat(32),                   // id
        "0100000000000000",                 // frames
        "840000000000000004000000",         // offset and length of the first
        "72d68fd4b9ce550da040b90d45be5193", // its checksum
        "5b870d17dd8e51b1adfda7f104434ce4", // the header's checksum
        "803f00c0",                         // 1.0 and -2.0
    ];
    assert_eq!(hex, expected.concat());
}

/// Frames that carry right checksums, as an attacker's would: the codec alone stands between them and memory.
#[test]
fn forged_frames_stay_within_the_shape() {
    let (shape, block) = sample();
    let values = shape.layer_values(block.tokens);
    for codec in Codec::ALL {
        let bytes = chunk::encode(&block, &shape, codec, &ID).unwrap();
        let frame = Header::read(&bytes, &shape, block.tokens, &ID, None).unwrap().frame(0);
        let genuine = &bytes[frame.clone()];
        let read = |frame: &[u8]| {
            let forged = with_first_frame(&bytes, &shape, frame);
            let found = chunk::decode(&forged, &shape, block.tokens, &ID);
            assert!(found.as_ref().is_ok_and(|found| found.fits(&shape)) || found.is_err());
            found
        };
        assert_eq!(read(genuine).unwrap(), chunk::decode(&bytes, &shape, block.tokens, &ID).unwrap());
        for i in 0..2_000 {
            // The lengths and the start of the entropy-coded part, where its tables are.
            let bit = (i * 31) % (400 * 8);
            let mut flipped = genuine.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = read(&flipped);
        }
        for len in 0..genuine.len() {
            assert!(matches!(read(&genuine[..len]), Err(Error::Layer { layer: 0, .. })), "{codec}: {len} bytes passed");
        }
    }
    // Exponents that unpack to more than the shape holds: first in a frame that is allowed, then in one that is too long.
    let bytes = chunk::encode(&block, &shape, Codec::Lossless, &ID).unwrap();
    for (unpacked, allowed) in [(values / 2 + 1, true), (16 << 20, true), (1 << 30, false)] {
        let bomb = zstd::bulk::compress(&vec![0; unpacked], 1).unwrap();
        let lengths = [bomb.len() as u32, 0].map(u32::to_le_bytes).concat();
        let forged = with_first_frame(&bytes, &shape, &[&lengths, &bomb[..], &vec![0; values]].concat());
        match chunk::decode(&forged, &shape, block.tokens, &ID) {
            Err(Error::Layer { layer: 0, .. }) => assert!(allowed),
            Err(Error::Frame { layer: 0, .. }) => assert!(!allowed),
            other => panic!("expected a refusal, found {other:?}"),
        }
    }
}

#[test]
fn each_mismatch_is_told_by_name() {
    let (shape, block) = sample();
    let bytes = chunk::encode(&block, &shape, Codec::Lossless, &ID).unwrap();
    let read = |bytes: &[u8]| chunk::decode(bytes, &shape, block.tokens, &ID).unwrap_err();
    let with = |change: &dyn Fn(&mut [u8])| {
        let mut changed = bytes.to_vec();
        change(&mut changed);
        reseal(&mut changed, &shape);
        read(&changed)
    };

    assert!(matches!(read(b""), Error::Magic));
    assert!(matches!(with(&|b| b[0] = b'X'), Error::Magic));
    assert!(matches!(with(&|b| b[5] = 1), Error::Version { found: 1 }));
    assert!(matches!(with(&|b| b[6..10].fill(0xff)), Error::Length { what: "header", found: 0xffff_ffff, .. }));
    assert!(matches!(with(&|b| b[10] ^= 1), Error::Shape { .. }));
    assert!(matches!(with(&|b| b[14..18].fill(0xff)), Error::Shape { width: u32::MAX, .. }));
    assert!(matches!(with(&|b| b[18..22].fill(0xff)), Error::Tokens { found: u32::MAX, .. }));
    assert!(matches!(with(&|b| b[22] = 9), Error::Codec { found: 9 }));
    assert!(matches!(with(&|b| b[23] = 1), Error::OtherKey { found } if found == KeyNumber([0; 8])));
    assert!(matches!(with(&|b| b[23] = 2), Error::Seal { found: 2 }));
    assert!(matches!(with(&|b| b[48] ^= 1), Error::Id { .. }));
    // A list that claims 2^63 frames.
    assert!(matches!(with(&|b| b[87] = 0x80), Error::Header(_)));
    assert!(matches!(with(&|b| b[88] ^= 1), Error::Frame { layer: 0, .. }));
    assert!(matches!(with(&|b| b[96..100].fill(0xff)), Error::Frame { layer: 0, len: u32::MAX, .. }));

    let flip = |at: usize| {
        let mut changed = bytes.to_vec();
        changed[at] ^= 1;
        read(&changed)
    };
    assert!(matches!(flip(30), Error::HeaderChecksum));
    assert!(matches!(flip(bytes.len() - 1), Error::FrameChecksum { layer } if layer == shape.layers - 1));
    assert!(matches!(read(&bytes[..bytes.len() - 1]), Error::Length { what: "chunk", .. }));
    assert!(matches!(read(&bytes[..20]), Error::Length { what: "chunk's start", .. }));

    // Sizes that no memory has are refused as numbers.
    for (huge, tokens) in
        [(Shape { layers: 2, width: usize::MAX }, 1), (shape, usize::MAX / 2), (Shape { layers: 1 << 40, width: 1 }, 1)]
    {
        assert!(matches!(chunk::decode(&bytes, &huge, tokens, &ID), Err(Error::Oversize { .. })));
        assert!(chunk::max_len(&huge, tokens).is_err());
    }
}

/// A reader that has only the header and one frame gets that layer.
#[test]
fn a_layer_is_read_alone() {
    let (shape, block) = sample();
    for codec in Codec::ALL {
        let bytes = chunk::encode(&block, &shape, codec, &ID).unwrap();
        let header = Header::read(&bytes[..chunk::prefix_len(&shape)], &shape, block.tokens, &ID, None).unwrap();
        assert_eq!(header.codec(), codec);
        let whole = chunk::decode(&bytes, &shape, block.tokens, &ID).unwrap();
        let frame = &bytes[header.frame(1)];
        let mut decoder = Decoder::default();
        assert_eq!(chunk::decode_layer(&header, 1, frame, &mut decoder).unwrap(), whole.layers[1]);
        let other = chunk::decode_layer(&header, 0, frame, &mut decoder);
        assert!(matches!(other, Err(Error::FrameChecksum { layer: 0 })));
    }
}

/// Three layers whose exponents cluster, so that the lossless codec has something to pack.
fn sample() -> (Shape, Block) {
    let shape = Shape { layers: 3, width: 24 };
    let tokens = 50;
    let value = |i: usize| half::bf16::from_f32(((i * 7919) % 1009) as f32 / 100.0 - 5.0).to_bits();
    let layers = (0..shape.layers).map(|l| (0..shape.layer_values(tokens)).map(|i| value(i + l * 13)).collect());
    (shape, Block { tokens, layers: layers.collect() })
}

/// Where the header's list of frames begins, and the bytes of an entry: offset, length, checksum.
const FRAMES: usize = 88;
const ENTRY: usize = 28;

fn get_frame(header: &[u8], layer: usize) -> (u64, u32) {
    let entry = &header[FRAMES + layer * ENTRY..];
    (u64::from_le_bytes(entry[..8].try_into().unwrap()), u32::from_le_bytes(entry[8..12].try_into().unwrap()))
}

fn set_frame(header: &mut [u8], layer: usize, offset: u64, len: u32) {
    let entry = &mut header[FRAMES + layer * ENTRY..];
    entry[..8].copy_from_slice(&offset.to_le_bytes());
    entry[8..12].copy_from_slice(&len.to_le_bytes());
}

/// The chunk with another frame for layer 0, and everything about it right but the frame itself.
fn with_first_frame(bytes: &[u8], shape: &Shape, frame: &[u8]) -> Vec<u8> {
    let start = chunk::prefix_len(shape);
    let (_, old_len) = get_frame(bytes, 0);
    let mut forged = [&bytes[..start], frame, &bytes[start + old_len as usize..]].concat();
    let mut offset = start as u64;
    for layer in 0..shape.layers {
        let len = if layer == 0 { frame.len() as u32 } else { get_frame(bytes, layer).1 };
        set_frame(&mut forged, layer, offset, len);
        offset += u64::from(len);
    }
    reseal(&mut forged, shape);
    forged
}

/// Makes every checksum right again, as far as the frames lie within the bytes.
fn reseal(bytes: &mut [u8], shape: &Shape) {
    let sum = |bytes: &[u8]| -> [u8; 16] { blake3::hash(bytes).as_bytes()[..16].try_into().unwrap() };
    for layer in 0..shape.layers {
        let (offset, len) = get_frame(bytes, layer);
        let end = offset.saturating_add(u64::from(len));
        if let Some(frame) = bytes.get(offset as usize..end as usize) {
            let sum = sum(frame);
            bytes[FRAMES + layer * ENTRY + 12..][..16].copy_from_slice(&sum);
        }
    }
    let end = chunk::prefix_len(shape) - 16;
    let sum = sum(&bytes[..end]);
    bytes[end..end + 16].copy_from_slice(&sum);
}
