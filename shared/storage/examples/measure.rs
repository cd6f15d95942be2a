use baton_contract::kv::*;
use baton_storage::*;
use std::time::Instant;
fn main() {
    let shape = Shape { layers: 30, width: 192 };
    let tokens = 256;
    let mut s = 88172645463325252u64;
    let mut u = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 11) as f64 / (1u64 << 53) as f64
    };
    let n = shape.layer_values(tokens);
    let scales: Vec<f64> = (0..192).map(|_| (u() * 2.0 - 1.0).exp2()).collect();
    let layers: Vec<Vec<u16>> = (0..30)
        .map(|_| {
            (0..n)
                .map(|i| {
                    let g = (-2.0 * (1.0 - u()).ln()).sqrt() * (6.283185307 * u()).cos();
                    let k = if i < n / 2 { 2.0 } else { 0.3 };
                    half::bf16::from_f64(g * k * scales[i % 192]).to_bits()
                })
                .collect()
        })
        .collect();
    let block = Block { tokens, layers };
    let raw = shape.bytes(tokens) as f64;
    let id = ChunkId([1; 32]);
    for codec in [Codec::Raw, Codec::Lossless] {
        let mut be = f64::MAX;
        let mut bd = f64::MAX;
        let mut len = 0;
        for _ in 0..12 {
            let t = Instant::now();
            let b = chunk::encode(&block, &shape, codec, &id).unwrap();
            be = be.min(t.elapsed().as_secs_f64());
            len = b.len();
            let t = Instant::now();
            let d = chunk::decode(&b, &shape, tokens, &id).unwrap();
            bd = bd.min(t.elapsed().as_secs_f64());
            assert_eq!(d, block);
        }
        println!(
            "{codec}: ratio {:.3} encode {:.0} MB/s decode {:.0} MB/s ({:.2} ms, {:.2} ms)",
            raw / len as f64,
            raw / 1e6 / be,
            raw / 1e6 / bd,
            be * 1e3,
            bd * 1e3
        );
    }
    let rt = tokio::runtime::Runtime::new().unwrap();
    rt.block_on(async {
        let d = std::env::temp_dir().join(format!("m{}", std::process::id()));
        let st = Store::open(d.to_str().unwrap()).unwrap();
        let kv = KvStore::new(st, shape, Codec::Lossless);
        let t = Instant::now();
        for i in 0..20u8 {
            kv.put(&ChunkId([i; 32]), block.clone()).await.unwrap();
        }
        println!("local put {:.2} ms a chunk", t.elapsed().as_secs_f64() * 50.0);
        let t = Instant::now();
        for i in 0..20u8 {
            kv.get(&ChunkId([i; 32]), tokens).await.unwrap().unwrap();
        }
        println!("local get {:.2} ms a chunk", t.elapsed().as_secs_f64() * 50.0);
        std::fs::remove_dir_all(d).unwrap();
    });
}
