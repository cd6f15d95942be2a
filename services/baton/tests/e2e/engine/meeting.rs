//! How two instances meet of which one prefills for the other: SGLang's bootstrap fields, and vLLM's parameters of a transfer.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::sync::watch;

/// Where the prefill instance says that its bootstrap server listens.
const BOOTSTRAP_PORT: u64 = 18_998;

/// Which of the two an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Prefill,
    Decode,
}

/// What both instances know.
#[derive(Default)]
pub struct Meeting {
    /// SGLang: who has come into each room.
    rooms: watch::Sender<BTreeMap<u64, Vec<Side>>>,
    /// vLLM: KV caches that were handed over, and those of them that were fetched.
    caches: watch::Sender<(usize, Vec<u64>)>,
}

/// A refusal: its status and what it says.
pub type Refused = (u16, String);

impl Meeting {
    /// Rooms in which both have been.
    pub fn met(&self) -> usize {
        self.rooms.borrow().values().filter(|sides| sides.len() == 2).count()
    }

    /// KV caches that were handed over, and fetched.
    pub fn transferred(&self) -> (usize, usize) {
        let caches = self.caches.borrow();
        (caches.0, caches.1.len())
    }

    /// As SGLang does: waits in the room that a request names until the other instance has got the same request.
    pub async fn meet(&self, side: Side, body: &Value) -> Result<(), Refused> {
        let named = (body["bootstrap_host"].as_str(), body["bootstrap_port"].as_u64(), body["bootstrap_room"].as_u64());
        let (Some("127.0.0.1"), Some(port), Some(room)) = named else {
            let text = "Invalid request: Disaggregated request received without bootstrap room id.";
            return Err((400, text.to_owned()));
        };
        if port != BOOTSTRAP_PORT {
            return Err((500, format!("Decode handshake failed: nobody listens at port {port}")));
        }
        let mut rooms = self.rooms.subscribe();
        let mut again = false;
        self.rooms.send_modify(|rooms| {
            let sides = rooms.entry(room).or_default();
            again = sides.contains(&side);
            sides.push(side);
        });
        if again {
            return Err((500, format!("room {room} is another request's")));
        }
        let there = rooms.wait_for(|rooms| rooms[&room].iter().any(|other| *other != side)).await;
        there.map(drop).map_err(|_| (500, "the other instance has gone".to_owned()))
    }

    /// What SGLang's prefill instance tells of itself.
    pub fn server_info(&self) -> Value {
        json!({ "disaggregation_mode": "prefill", "disaggregation_bootstrap_port": BOOTSTRAP_PORT })
    }

    /// As vLLM does: keeps a KV cache for another instance, and tells where it is.
    pub fn keep(&self, body: &Value) -> Result<Value, Refused> {
        if body["max_tokens"] != 1 || body["stream"] != false {
            return Err((400, "prefill computes one token, and streams nothing".to_owned()));
        }
        let mut number = 0;
        self.caches.send_modify(|caches| {
            number = caches.0;
            caches.0 += 1;
        });
        let params = json!({
            "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[number]], "remote_engine_id": "prefill",
            "remote_request_id": format!("request-{number}"), "remote_host": "127.0.0.1", "remote_port": 5601, "tp_size": 1,
        });
        let message = json!({ "role": "assistant", "content": "x" });
        Ok(
            json!({ "choices": [{ "index": 0, "message": message, "finish_reason": "length" }], "kv_transfer_params": params }),
        )
    }

    /// Fetches a KV cache, which is possible once.
    pub fn fetch(&self, params: &Value) -> Result<(), Refused> {
        let number = params["remote_block_ids"][0][0].as_u64();
        let (Some(number), true) = (number, params["do_remote_prefill"] == true) else {
            return Err((500, "EngineCore encountered an issue".to_owned()));
        };
        let mut known = false;
        self.caches.send_modify(|(kept, fetched)| {
            known = number < *kept as u64 && !fetched.contains(&number);
            fetched.push(number);
        });
        // A real one would read whatever lies there now.
        if known { Ok(()) } else { Err((500, format!("KV cache {number} was fetched before"))) }
    }
}
