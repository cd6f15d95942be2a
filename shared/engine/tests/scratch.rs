use baton_engine::{gguf, device, llama::Llama, model::{Model, Step}};
use std::time::Instant;
fn rss() -> String { std::fs::read_to_string("/proc/self/status").unwrap().lines().filter(|l| l.starts_with("VmRSS")||l.starts_with("VmHWM")||l.starts_with("RssAnon")).collect::<Vec<_>>().join(" ") }
#[test]
fn bench() {
    let path = std::path::PathBuf::from(std::env::var("HOME").unwrap()).join(".local/share/baton/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let t = Instant::now();
    let mut m = Llama::load(gguf::File::open(&path).unwrap(), device::by_name("flex").unwrap()).unwrap();
    println!("load {:.3}s {}", t.elapsed().as_secs_f64(), rss());
    if std::env::var("REF").is_ok() {
    for f in ["smollm2-raw", "smollm2-chat"] {
        let text = std::fs::read_to_string(format!("{}/tests/reference/{f}.jsonl", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let (mut n, mut sum, mut max, mut clear, mut wrong) = (0, 0.0, 0.0f64, 0, 0);
        for line in text.lines() {
            let v: serde_json::Value = serde_json::from_str(line).unwrap();
            let toks = |k: &str| v[k].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect::<Vec<_>>();
            let prompt = toks("prompt_tokens");
            let steps = v["steps"].as_array().unwrap();
            let id = m.open(prompt.len() + toks("completion_tokens").len()).unwrap();
            let mut next = prompt;
            let done = toks("completion_tokens"); let mut at = 0; let prompt_len = next.len();
            let mut fed = next.clone();
            for s in steps {
                let want = s["token"].as_u64().unwrap() as u32;
                while done[at] != want { next.push(done[at]); at += 1; } at += 1;
                let _ = (&mut fed, prompt_len);
                let l = m.forward(&[Step { sequence: id, tokens: &next, logits: true }]).unwrap().remove(0).unwrap();
                let top = l.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
                let mx = l.iter().cloned().fold(f32::MIN, f32::max) as f64;
                let lse = mx + l.iter().map(|x| (*x as f64 - mx).exp()).sum::<f64>().ln();
                let tok = s["token"].as_u64().unwrap() as u32;
                let e = (l[tok as usize] as f64 - lse - s["logprob"].as_f64().unwrap()).abs();
                if e > 0.05 { println!("{} step {} len {} e {e:.3}", v["id"], n, m.len(id).unwrap()); } n += 1; sum += e; max = max.max(e);
                let best = s["top"].as_array().unwrap();
                if best[0][1].as_f64().unwrap() - best[1][1].as_f64().unwrap() > 0.05 { clear += 1; if top as u64 != best[0][0].as_u64().unwrap() { wrong += 1; println!("WRONG {} step {n} {:?} ours {top} logprob {:.4} vs {:.4}", v["id"], best, l[top] as f64 - lse, l[best[0][0].as_u64().unwrap() as usize] as f64 - lse); } }
                next = vec![tok];
            }
            m.close(id);
        }
        println!("{f}: steps {n} mean {:.5} max {:.5} clear {clear} wrong {wrong}", sum / n as f64, max);
    }
    }
    { let text = std::fs::read_to_string(format!("{}/tests/reference/smollm2-chat.jsonl", env!("CARGO_MANIFEST_DIR"))).unwrap();
      let (mut bits, mut n) = ([0.0f64; 2], 0);
      for line in text.lines() { let v: serde_json::Value = serde_json::from_str(line).unwrap();
        let p = v["prompt_tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect::<Vec<_>>();
        if p.len() < 512 { continue; }
        let id = m.open(p.len()).unwrap(); m.forward(&[Step { sequence: id, tokens: &p, logits: false }]).unwrap();
        let b = m.export(id, 256..512).unwrap(); m.close(id);
        for l in &b.layers { n += 1; for (h, part) in l.chunks(l.len() / 2).enumerate() {
            let mut c = [0usize; 256]; for x in part { c[(x >> 7 & 255) as usize] += 1; }
            bits[h] += c.iter().filter(|c| **c > 0).map(|c| { let p = *c as f64 / part.len() as f64; -p * p.log2() }).sum::<f64>();
        } } }
      println!("exponent entropy bits: K {:.3} V {:.3}", bits[0] / n as f64, bits[1] / n as f64); }
    if std::env::var("REFONLY").is_ok() { return; }
    for s in [512usize, 1024] { for _ in 0..3 {
        let toks: Vec<u32> = (0..s as u32).map(|i| 1000 + i * 7 % 30000).collect();
        let id = m.open(s).unwrap();
        let t = Instant::now();
        m.forward(&[Step { sequence: id, tokens: &toks, logits: true }]).unwrap();
        println!("prefill {s}: {:.1} tok/s", s as f64 / t.elapsed().as_secs_f64());
        m.close(id);
    }}
    for b in [1usize, 8, 32] {
        let toks: Vec<u32> = (0..256u32).map(|i| 1000 + i * 7 % 30000).collect();
        let ids: Vec<_> = (0..b).map(|_| { let id = m.open(400).unwrap(); m.forward(&[Step { sequence: id, tokens: &toks, logits: false }]).unwrap(); id }).collect();
        let n = 24; let t = Instant::now();
        for i in 0..n { let tok = [100 + i as u32]; let steps: Vec<_> = ids.iter().map(|id| Step { sequence: *id, tokens: &tok, logits: true }).collect(); m.forward(&steps).unwrap(); }
        let dt = t.elapsed().as_secs_f64() / n as f64;
        println!("decode {b}: {:.2} ms/step {:.1} tok/s", dt * 1e3, b as f64 / dt);
        for id in ids { m.close(id); }
    }
    println!("{}", rss());
}
