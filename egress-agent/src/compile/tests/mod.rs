//! Objects in, tables out; no API server and no kernel.

mod clients;
mod gateways;
mod kept;
mod lockdowns;
mod make;
mod model;
mod property;
mod reach;
mod scenario;
