//! Each architecture and tokenizer against another engine's answers on tiny models (`make.py` wrote both), and the shapes
//! of chat templates.

mod answers;
mod gemma;
mod templates;
