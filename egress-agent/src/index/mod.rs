//! Objects by kind, namespace and name: the one place that both sources fill and everything
//! else reads. It holds only what somebody asks for. Pure.

mod object;

pub use object::{Object, ObjectId};
