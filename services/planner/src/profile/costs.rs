//! A profile for people.

use super::Profile;

impl Profile {
    /// What is done, and what it takes.
    pub fn costs(&self) -> Vec<(&'static str, String)> {
        let Self { kv, prefill, decode, transfer, store, bus, host, .. } = self;
        let micro = |seconds: f64| format!("{:.3} us", seconds * 1e6);
        let milli = |seconds: f64| format!("{:.3} ms", seconds * 1e3);
        let nano = |seconds: f64| format!("{:.4} ns", seconds * 1e9);
        let kib = |bytes: f64| format!("{:.2} KiB", bytes / 1024.0);
        let mut rows = vec![
            ("prefill pass", milli(prefill.s_per_pass)),
            ("prefill, each prompt", milli(prefill.s_per_prompt)),
            ("prefill, each token", micro(prefill.s_per_token)),
            ("prefill, each token and one before it", nano(prefill.s_per_token_context)),
            ("decode step", milli(decode.s_per_step)),
            ("decode, each sequence", milli(decode.s_per_sequence)),
            ("decode, each token of context", nano(decode.s_per_context_token)),
            ("KV of a token, raw", kib(kv.raw_bytes_per_token)),
            ("KV of a token, stored", kib(kv.stored_bytes_per_token)),
            ("KV out of the engine, each token", micro(transfer.export_s_per_token)),
            ("KV into the engine, each token", micro(transfer.import_s_per_token)),
            ("chunk put", milli(store.put_s)),
            ("chunk put, each byte", nano(store.put_s_per_byte)),
            ("chunk got", milli(store.get_s)),
            ("chunk got, each byte", nano(store.get_s_per_byte)),
            ("message", milli(bus.hop_s)),
        ];
        if let Some(host) = host {
            rows.extend([
                ("processor time beside, each job", milli(host.cpu_s_per_job)),
                ("the same, each step of decode", milli(host.cpu_s_per_step)),
                ("the same, each token of an answer", micro(host.cpu_s_per_token)),
                ("the same, each byte put", nano(host.put_cpu_s_per_byte)),
                ("the same, each byte got", nano(host.get_cpu_s_per_byte)),
            ]);
        }
        rows
    }
}
