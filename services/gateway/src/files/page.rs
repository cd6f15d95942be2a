//! Lists a page at a time, as OpenAI does it.

use baton_openai::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};

/// The order of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    Asc,
    #[default]
    Desc,
}

/// The page of up to `limit` things that follow the one with the id `after`. `key` gives a thing's place: its time and id.
pub(crate) fn page<T>(
    mut things: Vec<T>,
    key: impl Fn(&T) -> (u64, String),
    object: impl Fn(&T) -> Value,
    order: Order,
    after: Option<&str>,
    (limit, most): (usize, usize),
) -> Result<Value, ApiError> {
    if !(1..=most).contains(&limit) {
        return Err(ApiError::field("limit", format!("limit: expected 1 to {most}, found {limit}")));
    }
    things.sort_by_cached_key(&key);
    if order == Order::Desc {
        things.reverse();
    }
    let start = match after {
        None => 0,
        Some(after) => {
            let at = things.iter().position(|thing| key(thing).1 == after);
            1 + at.ok_or_else(|| ApiError::field("after", "after: expected the id of something in this list"))?
        }
    };
    let shown = &things[start..things.len().min(start + limit)];
    let id = |thing: Option<&T>| thing.map(|thing| key(thing).1);
    Ok(json!({
        "object": "list",
        "data": shown.iter().map(object).collect::<Vec<_>>(),
        "first_id": id(shown.first()),
        "last_id": id(shown.last()),
        "has_more": start + shown.len() < things.len(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_without_gap_or_overlap() {
        let things: Vec<u64> = vec![3, 1, 5, 2, 4];
        let show = |order, after: Option<&str>, limit| {
            page(things.clone(), |n| (*n, n.to_string()), |n| json!(n), order, after, (limit, 10))
        };
        for (order, expected) in [(Order::Asc, [1, 2, 3, 4, 5]), (Order::Desc, [5, 4, 3, 2, 1])] {
            let (mut seen, mut after) = (Vec::new(), None::<String>);
            loop {
                let page = show(order, after.as_deref(), 2).unwrap();
                seen.extend(page["data"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()));
                if page["has_more"] == false {
                    break;
                }
                after = Some(page["last_id"].as_str().unwrap().into());
            }
            assert_eq!(seen, expected);
        }
        assert_eq!(show(Order::Asc, None, 11).unwrap_err().param.as_deref(), Some("limit"));
        assert_eq!(show(Order::Asc, Some("9"), 1).unwrap_err().param.as_deref(), Some("after"));
    }
}
